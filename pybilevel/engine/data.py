"""The data of a call as the caller has them, in the order of the operators."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pybilevel.problems import Problem


class Data(NamedTuple):
    """What a problem was made of, or would be made of: all of it that operators and the form of a call see.

    Attributes:
        kind: the class.
        x, y, weights: the tensors, as the problem has them.
        l2: a tensor, or a number where it was one; None where there is none.
        traits: reduction, c, loss, then what the class calls `formative`.
    """

    kind: type
    x: Tensor
    y: Tensor
    weights: Tensor | None
    l2: float | Tensor | None
    traits: tuple[Any, ...]

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Those of a problem."""
        l2 = problem.l2_given if problem.regularised else None
        own = [getattr(problem, name) for name in problem.formative]
        traits = problem.reduction, problem.num_classes, problem.loss, *own
        return cls(type(problem), problem.x, problem.y, problem.weights, l2, traits)

    @property
    def penalty(self) -> Tensor | None:
        """l2 as a tensor, or None."""
        l2 = self.l2
        if l2 is None or isinstance(l2, Tensor):
            return l2
        return torch.full((), l2, dtype=self.x.dtype, device=self.x.device)


def given_inputs(
    inner: Data,
    outer: Data | None,
    w0: Any,
    buffers: Tensor | None,
    settings: Sequence[Tensor | None],
) -> tuple[Any, ...]:
    """The tensors of a call as the caller has them, in the order of the schema; that of the settings is their own."""
    query = (None, None, None) if outer is None else (outer.x, outer.y, outer.weights)
    return (inner.x, inner.y, inner.weights, inner.penalty, w0, buffers, *settings, *query)
