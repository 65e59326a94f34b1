"""A pass through a loss in which every torch call is looked at."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# functions that change running statistics in place without counting it as a new version, and the flag that says so
_STATISTICS = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}

# whether a tensor is none of its own: a view that torch.vmap makes of a task, which ends with the call
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

# what most torch calls are given beside tensors
_NUMBERS = frozenset((int, float, bool, str, type(None)))


class Watch(TorchFunctionMode):
    """Records which tensors torch calls made, and which came from outside (with their version at first sight).

    The results of custom autograd functions, which are no torch calls, count as from outside.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()
        # by id; beside `own`, with strong references: an id is only an id while its tensor lives
        self._met = {id(t) for t in own}
        self.made: list[Tensor] = []
        self.outside: dict[int, tuple[Tensor, int]] = {}
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}  # with their states at first sight
        self.made_bytes = 0
        self.statistics: set[int] = set()
        self.nested = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # one call in a few microseconds: most are given tensors and numbers, and give a tensor
        for value in args:
            if type(value) is not Tensor or id(value) not in self._met:
                self._meet(value)
        if kwargs:
            for value in kwargs.values():
                self._meet(value)
            if func in _STATISTICS and kwargs.get(_STATISTICS[func]):
                running = (*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var"))
                self.statistics |= {id(x) for x in running} & self.outside.keys()
        if func is torch.autograd.grad:
            self.nested = True
        result = func(*args, **kwargs) if kwargs else func(*args)
        if type(result) is Tensor:
            self._make(result)
        else:
            for tensor in _tensors(result):
                self._make(tensor)
        return result

    def _meet(self, value: Any) -> None:
        """A torch call is given `value`."""
        if type(value) in _NUMBERS:
            return
        for tensor in _tensors(value):
            key = id(tensor)
            if key not in self._met and not _is_wrapped(tensor):
                self._met.add(key)
                self.outside[key] = (tensor, version(tensor))
        if isinstance(value, torch.Generator) and id(value) not in self.generators:
            self.generators[id(value)] = (value, value.get_state())

    def _make(self, tensor: Tensor) -> None:
        """A torch call gives `tensor`."""
        if _is_wrapped(tensor):
            self.made_bytes += _whole(tensor).nbytes
        elif id(tensor) not in self._met:
            self._met.add(id(tensor))
            self.made.append(tensor)
            self.made_bytes += tensor.nbytes


def watched(loss: Callable[[], Tensor], own: Sequence[Tensor]) -> tuple[Tensor, Watch]:
    """What `loss` gives, and what was seen; `own` are its arguments."""
    watch = Watch(own)
    with torch.enable_grad(), watch:
        return loss(), watch


def version(tensor: Tensor) -> int:
    """How often `tensor` was changed in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def alive(ref: "weakref.ref[Tensor]") -> Tensor | None:
    """The tensor of a weak reference, if it lives: also where its Python object was gone for a while."""
    tensor = ref()
    if tensor is not None:
        tensor._fix_weakref()  # type: ignore[attr-defined]
    return tensor


def _whole(tensor: Tensor) -> Tensor:
    """The tensor of all tasks behind one that torch.vmap made."""
    while _is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _tensors(value: Any) -> Sequence[Tensor]:
    # asking whether it is one of a subclass takes a microsecond
    if type(value) is Tensor or isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, (tuple, list, dict)):
                found.extend(_tensors(item))
    return found
