"""Tensors that an inner loss captures by closure or module: found by one pass, then fed as hidden inputs."""

import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pybilevel.checks import readable
from pybilevel.engine.randomness import default_generators
from pybilevel.engine.watch import alive, version, watched
from pybilevel.ops import graph_leaves


@dataclass(frozen=True)
class Capture:
    """What one pass through a loss saw.

    Attributes:
        tensors: the captured tensors that carry gradients, in order of appearance.
        mutated: the tensors from outside that the loss changed in place.
        generators: those that the loss drew random numbers from, torch's or its own.
        untouched: torch's others, with their states.
        nested: whether the loss calls torch.autograd.grad itself.
        relied: what a replay has to find again.
        made_bytes: the bytes of everything its torch calls returned, an estimate of one step's tape.
    """

    tensors: tuple[Tensor, ...]
    mutated: tuple[Tensor, ...]
    generators: tuple[torch.Generator, ...]
    untouched: tuple[tuple[torch.Generator, Tensor], ...]
    nested: bool
    relied: "Relied"
    made_bytes: int


# the code that every function marked once_differentiable shares
_ONCE = torch.autograd.function.once_differentiable(lambda _: None).__code__


def find(loss: Callable[[], Tensor], own: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Capture]:
    """Evaluate `loss` once; its value, and what entered it from outside beside `own`, its arguments.

    `own` are fresh leaves that ask for gradients, as a loss that differentiates itself needs them. Random generators
    are left where they were.
    """
    before = [(g, g.get_state()) for g in default_generators(device)]
    value, watch = watched(loss, own)
    drawn = [(g, state) for g, state in before if not torch.equal(g.get_state(), state)]
    untouched = [pair for pair in before if all(pair[0] is not g for g, _ in drawn)]
    drawn += [pair for pair in watch.generators.values() if all(pair[0] is not g for g, _ in before)]
    outside = list(watch.outside.values())
    captured = [t for t, _ in outside if t.requires_grad]
    if not all(t.is_leaf for t in captured):
        captured = _lasting(captured, loss, own)
    for generator, state in drawn:
        generator.set_state(state)
    return value, Capture(
        tensors=tuple(captured),
        mutated=tuple(t for t, seen in outside if version(t) != seen or id(t) in watch.statistics),
        generators=tuple(generator for generator, _ in drawn),
        untouched=tuple(untouched),
        nested=watch.nested,
        relied=Relied(outside, watch.made, _readable(value)),
        made_bytes=watch.made_bytes,
    )


class Relied:
    """The tensors that a pass through a loss met, held weakly, and its value: a replay has to find the same.

    Those from outside come with their versions of then.

    A change escapes it if only a branch not taken at first sees it; on CUDA also one behind `.data`, of a number, or
    of a batch that the loss draws, since values are not read there. Where all graphs are kept and the loss ran once
    a step, there is no replay, and one behind `.data` escapes as it does in plain PyTorch.
    """

    def __init__(
        self,
        outside: Sequence[tuple[Tensor, int]] = (),
        made: Collection[Tensor] = (),
        value: Tensor | None = None,
    ) -> None:
        self._value = value
        self._outside = [(weakref.ref(t), seen) for t, seen in outside]
        # what the loss made and kept (a cache) comes from outside the next time
        self._known = dict(zip(map(id, made), map(weakref.ref, made), strict=True))
        self._known.update((id(t), weakref.ref(t)) for t, _ in outside)

    def also(self, tensors: Sequence[Tensor]) -> None:
        """Rely on these too: what later steps will meet."""
        self._outside += [(weakref.ref(t), version(t)) for t in tensors]

    def expect(self, value: Tensor) -> None:
        """Let a replay find this value."""
        self._value = _readable(value)

    def changed(self) -> list[Tensor]:
        """Those from outside that live and were changed in place since."""
        held = [(alive(ref), seen) for ref, seen in self._outside]
        return [t for t, seen in held if t is not None and version(t) != seen]

    def replay(self, loss: Callable[[], Tensor], own: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
        """What `loss`, run again on the same values, takes from outside and did not; whether its value is the same."""
        value, watch = watched(loss, own)
        strangers = [t for t, _ in watch.outside.values() if not self._knows(t)]
        same = self._value is None or _close(self._value, value.detach())
        return (_lasting(strangers, loss, own) if strangers else []), same

    def _knows(self, tensor: Tensor) -> bool:
        ref = self._known.get(id(tensor))
        return ref is not None and alive(ref) is tensor


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


class Inspected(NamedTuple):
    """What a walk over the graph of a value found.

    Attributes:
        foreign: the leaves that carry gradients into it beside one's own (and not by them).
        once: the names of the custom functions in it that are marked once_differentiable: torch's second backward
            through those is not an error but zero, in silence.
        kinds: the names of the kinds of its nodes.
    """

    foreign: list[Tensor]
    once: list[str]
    kinds: list[str]


def inspect_graph(value: Tensor, own: Sequence[Tensor]) -> Inspected:
    """A walk over the graph of `value` down to `own`."""
    foreign, kinds = graph_leaves(value, own)
    return Inspected(foreign, _once(value, own) if "custom" in kinds else [], kinds)


def _once(value: Tensor, own: Sequence[Tensor]) -> list[str]:
    """The names of the custom functions in the graph of `value` that are marked once_differentiable."""
    once: list[str] = []
    seen: set[Any] = {leaf.grad_fn for leaf in own if leaf.grad_fn is not None}
    stack: list[Any] = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is _ONCE:
            once.append(function.__name__)
        stack.extend(parent for parent, _ in node.next_functions)
    return once


def describe(inner: Callable[..., Any], tensors: Sequence[Tensor]) -> str:
    """The tensors in words: shape, dtype and, where a module of `inner` holds one, its name."""
    names = {
        id(t): name
        for module in reversed(list(_modules(inner)))
        for name, t in (*module.named_parameters(), *module.named_buffers())
    }
    return ", ".join(f"{names.get(id(t), 'a tensor')} {list(t.shape)} {t.dtype}" for t in tensors)


def _lasting(tensors: Sequence[Tensor], loss: Callable[[], Tensor], own: Sequence[Tensor]) -> list[Tensor]:
    """Those of `tensors` that one more pass takes from outside as well: others are new objects every time."""
    _, watch = watched(loss, own)
    return [t for t in tensors if id(t) in watch.outside]


def _readable(value: object) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) and readable(value) else None


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the order of sums, which may differ between threads."""
    if torch.equal(a, b):  # a quarter of the time of `allclose`
        return True
    tolerance = torch.finfo(a.dtype).eps ** 0.5 if a.is_floating_point() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _modules(inner: Any) -> Iterator[torch.nn.Module]:
    if isinstance(inner, functools.partial):
        for part in (inner.func, *inner.args, *inner.keywords.values()):
            yield from _modules(part)
        return
    held = [inner, getattr(inner, "__self__", None), *getattr(inner, "__dict__", {}).values()]
    held += [cell.cell_contents for cell in getattr(inner, "__closure__", None) or () if _filled(cell)]
    yield from (item for item in held if isinstance(item, torch.nn.Module))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
