"""Tensors that an inner loss captures by closure or module: found by one pass, then fed as hidden inputs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Capture:
    """What one pass through a loss saw.

    Attributes:
        tensors: the captured tensors that carry gradients, in order of appearance.
        mutated: the tensors from outside that the loss changed in place.
        random: whether the loss drew random numbers.
        made_bytes: the bytes of everything its torch calls returned, an estimate of one step's tape.
    """

    tensors: tuple[Tensor, ...]
    mutated: tuple[Tensor, ...]
    random: bool
    made_bytes: int


# the code that every function marked once_differentiable shares
_ONCE = torch.autograd.function.once_differentiable(lambda _: None).__code__


def find(loss: Callable[[], Tensor], own: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Capture]:
    """Evaluate `loss` once without a graph; its value, and what entered it from outside beside `own`.

    `own` are the loss's arguments, detached, so that whatever carries gradients here was captured.
    """
    before = _random_states(device)
    watch = _Watch(own)
    with torch.no_grad(), watch:
        value = loss()
    random = any(not torch.equal(a, b) for a, b in zip(before, _random_states(device), strict=True))
    outside = list(watch.outside.values())
    return value, Capture(
        tensors=tuple(t for t, _ in outside if t.requires_grad),
        mutated=tuple(t for t, version in outside if t._version != version),
        random=random,
        made_bytes=sum(t.nbytes for t in watch.made.values()),
    )


class Substitute(TorchFunctionMode):
    """Within it, torch calls see `new` wherever the code passes the tensors `old`."""

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        super().__init__()
        self._new = {id(a): b for a, b in zip(old, new, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*self._swap(args), **(self._swap(kwargs) if kwargs else {}))

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._new.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(self._swap(item) for item in value)
        if type(value) is dict:
            return {key: self._swap(item) for key, item in value.items()}
        return value


def inspect_graph(value: Tensor, own: Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """A walk over the graph of `value`, about 1 us a node.

    Returns:
        The leaves that carry gradients into it beside `own`, and the names of the custom functions in it that are
        marked once_differentiable: torch's second backward through those is not an error but zero, in silence.
    """
    ours = {id(leaf) for leaf in own}
    foreign: list[Tensor] = []
    once: list[str] = []
    seen: set[Any] = set()
    stack: list[Any] = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ours:
            foreign.append(leaf)
        function = getattr(node, "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is _ONCE:
            once.append(function.__name__)
        stack.extend(parent for parent, _ in node.next_functions)
    return foreign, once


def describe(inner: Callable[..., Any], tensors: Sequence[Tensor]) -> str:
    """The tensors in words: shape, dtype and, where a module of `inner` holds one, its name."""
    names = {id(t): name for module in _modules(inner) for name, t in module.named_parameters()}
    return ", ".join(f"{names.get(id(t), 'a tensor')} {list(t.shape)} {t.dtype}" for t in tensors)


class _Watch(TorchFunctionMode):
    """Records which tensors torch calls made, and which came from outside (with their version at first sight)."""

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()
        self._own = {id(t) for t in own}
        # strong references: an id is only an id while its tensor lives
        self.made: dict[int, Tensor] = {}
        self.outside: dict[int, tuple[Tensor, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            key = id(tensor)
            if key not in self._own and key not in self.made and key not in self.outside:
                self.outside[key] = (tensor, tensor._version)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if id(tensor) not in self._own and id(tensor) not in self.outside:
                self.made[id(tensor)] = tensor
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _modules(inner: Any) -> Iterator[torch.nn.Module]:
    if isinstance(inner, functools.partial):
        for part in (inner.func, *inner.args, *inner.keywords.values()):
            yield from _modules(part)
        return
    held = [inner, getattr(inner, "__self__", None)]
    held += [cell.cell_contents for cell in getattr(inner, "__closure__", None) or () if _filled(cell)]
    yield from (item for item in held if isinstance(item, torch.nn.Module))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
