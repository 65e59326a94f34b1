"""Inputs whose own graph an earlier backward has freed: torch's error comes from there, and names nothing of ours."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

DEPTH = 8  # how many nodes behind an input are looked at: an encoder's last layers keep tensors


class Origin(NamedTuple):
    """What made a tensor: its name, shape and node. Keeps the node, not the tensor."""

    name: str
    shape: list[int]
    node: Any

    @classmethod
    def all_of(cls, inputs: Iterable[tuple[str, Tensor | None]]) -> "list[Origin]":
        """Those of the named tensors that were computed."""
        return [
            cls(name, list(tensor.shape), tensor.grad_fn)
            for name, tensor in inputs
            if tensor is not None and tensor.grad_fn is not None
        ]


def check_alive(inputs: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise RuntimeError, naming the input, if the graph behind one of the named tensors has been freed.

    So it is at the second backward of a loop outside which the tensor was computed. Cost: about 2 us an input.
    """
    _check(Origin.all_of(inputs))


def watch(result: Tensor, inputs: Iterable[tuple[str, Tensor | None]]) -> None:
    """`check_alive`, whenever the node that made `result` of these tensors is about to run backward."""
    origins, node = Origin.all_of(inputs), result.grad_fn
    if origins:
        node.register_prehook(lambda _: _check(origins))  # type: ignore[union-attr]


def _check(origins: list[Origin]) -> None:
    for name, shape, node in origins:
        if any(map(_is_freed, _behind(node))):
            raise RuntimeError(
                f"{name}, of shape {shape}, was computed before the loop, and a backward has freed its graph: "
                "compute it inside the loop, for every backward anew, or call backward(retain_graph=True)"
            )


def _behind(node: Any) -> Iterator[Any]:
    """`node`, and up to DEPTH nodes behind it, nearest first."""
    queue, seen = [node], 0
    while queue and seen < DEPTH:
        now = queue.pop(0)
        seen += 1
        yield now
        queue.extend(parent for parent, _ in now.next_functions if parent is not None)


@lru_cache(maxsize=1024)
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _is_freed(node: Any) -> bool:
    """Whether `node` has released its saved tensors. Never unpacks one, which could run a checkpointed forward."""
    for raw in _saved_names(type(node)):  # type: ignore[arg-type]
        saved = getattr(node, raw)
        if getattr(saved, "data", saved) is not None:
            return False
        try:
            getattr(
                node, raw.removeprefix("_raw")
            )  # None where nothing was saved, an error where it was freed
        except RuntimeError:
            return True
    return False
