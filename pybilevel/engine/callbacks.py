"""What a callback of `unroll` is told: the steps of the forward pass, and the cotangents of the reverse pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.randomness import Streams


@dataclass(frozen=True)
class InnerStep:
    """One inner step, as a callback sees it right after it was made. Its tensors carry no graph; do not change them.

    Attributes:
        step: t, how many steps led to `w`; over all calls, where a state was given.
        loss: L(w_{t-1}), (), the loss that the step descended; of tasks the sum.
        gradient: dL/dw at w_{t-1}, without weight decay, the pytree of w0.
        w: w_t, the pytree of w0.
    """

    step: int
    loss: Tensor
    gradient: Any
    w: Any

    @cached_property
    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of `gradient` over all parameters, (); computed when first asked for."""
        return norm(pytree.tree_leaves(self.gradient))


@dataclass(frozen=True)
class ReverseStep:
    """One cotangent of the reverse pass, as the method `on_reverse` of a callback sees it. Do not change it.

    Attributes:
        step: t, counted like `InnerStep.step`; the first one of a backward is the last step.
        cotangent: dE/dw_t of whatever `backward` was called on, the pytree of w0.
    """

    step: int
    cotangent: Any

    @cached_property
    def cotangent_norm(self) -> Tensor:
        """The Euclidean norm of `cotangent` over all parameters, (); computed when first asked for."""
        return norm(pytree.tree_leaves(self.cotangent))


Callback = Callable[[InnerStep], Any]


class Observer:
    """Hands what an engine does to the callback of a call.

    Args:
        callback: what the caller gave.
        spec: the structure of w0.
        start: the step counter at w0.
        streams: the random generators of the loss.
    """

    def __init__(self, callback: Callback, spec: pytree.TreeSpec, start: int, streams: Streams) -> None:
        self._callback = callback
        self._on_reverse: Callable[[ReverseStep], Any] | None = getattr(callback, "on_reverse", None)
        self._spec = spec
        self._start = start
        self._streams = streams

    def stepped(self, t: int, loss: Tensor, gradient: Sequence[Tensor], w: Sequence[Tensor]) -> bool:
        """Tells that step t of the call, from 0, was made; whether the callback wants to stop here."""
        # the last w becomes a node of the caller's graph, which a record must not hold: hence detach
        trees = [pytree.tree_unflatten([x.detach() for x in part], self._spec) for part in (gradient, w)]
        with self._streams.foreign():
            return _stops(self._callback(InnerStep(self._start + t + 1, loss.detach(), *trees)))

    def reversed(self, t: int, cotangent: Sequence[Tensor]) -> None:
        """Tells the cotangent of w_t of the call, if the callback listens."""
        if self._on_reverse is not None:
            self._on_reverse(ReverseStep(self._start + t, pytree.tree_unflatten(list(cotangent), self._spec)))


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all values of some tensors, ()."""
    parts: Tensor = torch.stack([torch.linalg.vector_norm(x) for x in tensors])
    return parts.norm()  # type: ignore[no-any-return]


def _stops(result: Any) -> bool:
    if result is None:
        return False
    if isinstance(result, (bool, np.bool_)) or (isinstance(result, Tensor) and result.dtype == torch.bool):
        return bool(result)
    raise TypeError(
        f"callback returned {result!r}: return True to stop after this step, or else None or False"
    )
