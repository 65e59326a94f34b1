"""Inputs whose own graph an earlier backward has freed: torch's error comes from there, and names nothing of ours."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor

DEPTH = 8  # how many nodes behind an input are looked at: an encoder's last layers keep tensors


def check_alive(inputs: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise RuntimeError, naming the input, if the graph behind one of the named tensors has been freed.

    So it is at the second backward of a loop outside which the tensor was computed. Cost: about 2 us an input.
    """
    for name, tensor in inputs:
        node = None if tensor is None else tensor.grad_fn
        if node is not None and any(map(_is_freed, _behind(node))):
            assert tensor is not None
            raise RuntimeError(
                f"{name}, of shape {list(tensor.shape)}, was computed before the loop, and a backward has freed "
                "its graph: compute it inside the loop, for every backward anew, or call backward(retain_graph=True)"
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
