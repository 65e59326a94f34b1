"""Mini-batches: one a step, in every form that a backward can replay."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from pybilevel.checks import extremes, readable
from pybilevel.problems import Problem

FORMS = (
    "a tensor, tuple or dict whose leaves have a leading steps axis; a list with one batch a step; or a pure "
    "function t -> batch"
)


class Batches:
    """The batches of one call, as a pure function of the step.

    Attributes:
        learnable: the floating leaves that require a gradient, [steps, ...], part of the caller's graph.
        held: the tensors that must not change between forward and backward.
        lazy: whether the batches are made when asked for, and may then be asked for several times.
    """

    def __init__(
        self,
        take: Callable[[int], Any],
        learnable: Sequence[Tensor] = (),
        places: Sequence[int] = (),
        held: Sequence[Tensor] = (),
        lazy: bool = False,
    ) -> None:
        self._take = take
        self.lazy = lazy
        self._places = tuple(places)
        self.learnable = list(learnable)
        self.held = list(held)

    def at(self, t: int, parts: Sequence[Tensor] = ()) -> Any:
        """The batch of step t; `parts` stand for the slices at t of the learnable leaves."""
        batch = self._take(t)
        if not parts:
            return batch
        leaves, spec = pytree.tree_flatten(batch)
        for place, part in zip(self._places, parts, strict=True):
            leaves[place] = part
        return pytree.tree_unflatten(leaves, spec)


def normalise(value: Any, steps: int) -> Batches:
    """The batches of `steps` steps, decided by type and never by size.

    Args:
        value: a tensor, tuple, dict or other pytree node whose leaves are tensors [steps, ...]; a list, or any other
            object with a length and items, of `steps` batches; or a pure function t -> batch.
        steps: T.

    Memory: floating tensors of a list that require a gradient are stacked, once each; else nothing.

    Raises:
        TypeError: an iterator, a DataLoader, or none of the forms. ValueError: a length is not `steps`.
    """
    if isinstance(value, DataLoader) or hasattr(value, "__next__"):
        raise TypeError(
            f"batches is a {type(value).__name__}, which gives its batches only once, and the backward needs them "
            f"again: pass list(itertools.islice(batches, steps)), or {FORMS}"
        )
    if isinstance(value, list):
        _check_length(len(value), steps)
        return _listed(value)
    leaves, spec = pytree.tree_flatten(value)
    if isinstance(value, Tensor) or not spec.is_leaf():
        return _stacked(leaves, spec, steps)
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        _check_length(len(value), steps)
        return Batches(value.__getitem__, lazy=True)
    if callable(value):
        return Batches(value, lazy=True)
    raise TypeError(f"batches must be {FORMS}; got {value!r}")


def check_rows(batches: Batches, problem: Problem, steps: int) -> None:
    """Raise unless every batch holds row indices of a fused problem; those of a function are checked later.

    Raises:
        TypeError: not int64. ValueError: the shape is none of a batch of its tasks, or (on CPU) an index is out of
            range.
    """
    for t in range(0 if batches.lazy else steps):
        _check_row(batches.at(t), problem, t)


def rows(batches: Batches, problem: Problem, t: int) -> Tensor:
    """The row indices [*B, b] of step t; errors as in `check_rows`, which has run."""
    index: Tensor = batches.at(t)
    if batches.lazy:
        _check_row(index, problem, t)
    return index


def _check_row(index: Any, problem: Problem, t: int) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        found = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(
            f"batches of a fused problem are row indices, int64 tensors [*B, b] a step, got {found}: call .long()"
        )
    if index.ndim == 0 or index.shape[-1] == 0 or tuple(index.shape[:-1]) != problem.tasks:
        raise ValueError(
            f"batches of a fused problem are [steps, *B, b] with *B = {list(problem.tasks)} and b >= 1, "
            f"got {list(index.shape)} for step {t}"
        )
    if index.device != problem.device:
        raise ValueError(
            f"batches are on {index.device} but x is on {problem.device}: move one with .to(device)"
        )
    if readable(index):
        low, high = extremes(index)
        if low < 0 or high >= problem.n:
            wrong = low if low < 0 else high
            raise ValueError(
                f"batches hold the row {wrong} at step {t}, but inner has the rows 0..{problem.n - 1}"
            )


def _check_length(length: int, steps: int) -> None:
    if length != steps:
        raise ValueError(
            f"batches has {length} batches but there are {steps} steps: a list has one a step (tensors with a "
            "leading steps axis go in a tuple or a dict)"
        )


def _stacked(leaves: list[Any], spec: pytree.TreeSpec, steps: int) -> Batches:
    if not leaves:
        raise ValueError("batches holds no tensors: leave it None, or give tensors with a leading steps axis")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"leaf {i} of batches is a {type(leaf).__name__}: a tuple or dict of batches holds tensors with a "
                "leading steps axis; put constants into hparams"
            )
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            raise ValueError(
                f"leaf {i} of batches has shape {list(leaf.shape)} but there are {steps} steps: the first axis is "
                "the step (a list has one batch a step)"
            )
    places = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    learnable = [leaves[i] for i in places]
    plain = [leaf.detach() if leaf.requires_grad else leaf for leaf in leaves]

    def take(t: int) -> Any:
        return pytree.tree_unflatten([leaf[t] for leaf in plain], spec)

    return Batches(take, learnable, places, [leaf for leaf in leaves if not leaf.requires_grad])


def _listed(value: list[Any]) -> Batches:
    value = list(value)  # the caller may change the list before the backward
    steps = [pytree.tree_flatten(batch) for batch in value]
    tensors = [leaf for leaves, _ in steps for leaf in leaves if isinstance(leaf, Tensor)]
    if not any(x.requires_grad for x in tensors):
        return Batches(value.__getitem__, held=tensors)
    for t, (_, spec) in enumerate(steps):
        if spec != steps[0][1]:
            raise ValueError(
                f"batches[{t}] has the structure {spec} but batches[0] has {steps[0][1]}: batches that require a "
                "gradient must have one structure"
            )
    columns = list(zip(*(leaves for leaves, _ in steps), strict=True))
    places = [i for i, column in enumerate(columns) if any(_learnable(leaf) for leaf in column)]
    learnable = [_stack(i, columns[i]) for i in places]
    return Batches(value.__getitem__, learnable, places, [x for x in tensors if not x.requires_grad])


def _learnable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _stack(place: int, column: tuple[Any, ...]) -> Tensor:
    shapes = {tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in column}
    if len(shapes) > 1:
        raise ValueError(
            f"leaf {place} of the batches requires a gradient and has different shapes, {sorted(map(str, shapes))}: "
            "make them the same (pad, with weight 0), or pass the tensors through hparams"
        )
    return torch.stack(column)
