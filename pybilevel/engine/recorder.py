"""A callback that keeps the curves of an unroll."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pybilevel.engine.callbacks import InnerStep, ReverseStep


class Recorder:
    """A callback of `unroll` that keeps inner losses and gradient norms, and the norms of the backward's cotangents.

        recorder = pb.Recorder()
        w = pb.unroll(..., callback=recorder)
        outer(w).backward()
        recorder.losses, recorder.gradient_norms, recorder.cotangent_norms

    Vanishing or exploding hypergradients show in the cotangents |dE/dw_t|: how much w_t mattered for the outcome. An
    unroll that starts anew clears what an earlier one left; one that goes on from the state of the last adds to it. Of
    several backwards the last counts. `pybilevel.experiments.trajectory.plot` draws it.

    Args:
        stop: a predicate of `pb.InnerStep`; the unroll stops after the first step for which it is true.

    Cost: two norms a step, kept as tensors (), and no synchronisation with a device before they are read.
    """

    def __init__(self, stop: Callable[[InnerStep], Any] | None = None) -> None:
        self._stop = stop
        self._losses: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}
        self._cotangents: dict[int, Tensor] = {}
        self._last: int | None = None

    def __call__(self, step: InnerStep) -> Any:
        """Records a step; what `stop` says of it."""
        if step.step - 1 != self._last:
            self._losses, self._gradients, self._cotangents = {}, {}, {}
        self._last = step.step
        self._losses[step.step - 1] = step.loss
        self._gradients[step.step - 1] = step.gradient_norm
        return None if self._stop is None else self._stop(step)

    def on_reverse(self, step: ReverseStep) -> None:
        """Records a cotangent."""
        self._cotangents[step.step] = step.cotangent_norm

    @property
    def losses(self) -> dict[int, float]:
        """t -> L(w_t), for every step from w_t that was made."""
        return _numbers(self._losses)

    @property
    def gradient_norms(self) -> dict[int, float]:
        """t -> |dL/dw| at w_t, for the same t."""
        return _numbers(self._gradients)

    @property
    def cotangent_norms(self) -> dict[int, float]:
        """t -> |dE/dw_t|, for every t that the last backward reached, w_T included; empty before a backward."""
        return _numbers(self._cotangents)


def _numbers(values: dict[int, Tensor]) -> dict[int, float]:
    return {t: float(values[t]) for t in sorted(values)}
