"""The hyperparameter-optimization (HO) objective: train on the inner problem, and take the validation error."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pybilevel.engine.unroll import unroll
from pybilevel.objectives.outer import evaluate
from pybilevel.optimizers import Optimizer
from pybilevel.problems import Problem


def ho_objective(
    inner: Any,
    outer: Problem | Callable[[Any], Tensor],
    w0: Any = None,
    hparams: Any = None,
    *,
    steps: int,
    optimizer: Optimizer,
    **options: Any,
) -> Tensor:
    """The outer objective E(w_T) of an inner problem trained for T steps, differentiable in every hyperparameter.

        E(w_T),   w_0 given or zero,   w_t = Phi_t(w_{t-1}, lambda),   t = 1..T

    `ho_objective(...).backward()` fills the leaves behind w0, hparams, and all that inner, outer and optimizer hold:
    example weights, l2, step sizes, inputs, soft labels.

    Args:
        inner: as in `pb.unroll`: a fused problem on the training data, or a callable.
        outer: a fused problem on the validation data (one operator each way, if inner is fused too and has the same
            loss), or a callable w_T -> number.
        w0, hparams, steps, optimizer: as in `pb.unroll`.
        options: `batches`, `in_dims`, `randomness`, `method`, `memory`, `state`, `callback`, `backend` and
            `precision`, as in `pb.unroll`.

    Returns:
        E: () without task dimensions, else [*B], one a task; what a callable `outer` returns.

    Cost: as `pb.unroll`, and the outer objective once each way.

    Raises:
        as `pb.unroll`; ValueError where inner and outer do not go together; TypeError for another outer.

    Source: Franceschi et al., ICML 2018, sections 2 and 3.1.
    """
    check_levels(inner, outer, hparams, options)
    if isinstance(inner, Problem) and isinstance(outer, Problem):
        return evaluate(inner, outer, w0, steps=steps, optimizer=optimizer, **options).loss
    return outer(unroll(inner, w0, hparams, steps=steps, optimizer=optimizer, **options))


def check_levels(inner: Any, outer: Any, hparams: Any, options: Mapping[str, Any]) -> None:
    """Raise for what `ho_objective` does not take and `unroll` does not look at."""
    if options.get("return_state"):
        raise ValueError("return_state is not for ho_objective: call pb.unroll, then outer")
    if not isinstance(outer, Problem) and not callable(outer):
        raise TypeError(
            f"outer must be a problem such as pb.SoftmaxRegression(x, y) or a callable, got {outer!r}"
        )
    if isinstance(inner, Problem) and hparams is not None:
        raise ValueError("hparams is given but a fused problem holds its own tensors: leave hparams None")
