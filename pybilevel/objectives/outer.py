"""The outer objective of a linear model on data of its own: fused with the unroll where it can be."""

from typing import Any, NamedTuple

from torch import Tensor

from pybilevel.checks import check_same
from pybilevel.engine import fused
from pybilevel.engine.arguments import normalise
from pybilevel.engine.call import Call
from pybilevel.engine.unroll import dispatch
from pybilevel.errors import BackendError
from pybilevel.problems import LinearProblem


class Evaluation(NamedTuple):
    """Loss [*B], one a task, and logits [*B, m, c] of the trained models on the outer data."""

    loss: Tensor
    logits: Tensor


def evaluate(inner: LinearProblem, outer: LinearProblem, w0: Tensor | None, **options: Any) -> Evaluation:
    """Unroll `inner` and evaluate `outer` at w_T; `options` are those of `unroll`.

    Raises:
        as `unroll`; ValueError where inner and outer do not go together.
    """
    _check_pair(inner, outer)
    call = normalise(inner, w0, **options)
    outer = outer.promoted()
    reasons = fused_reasons(call, outer)
    if call.backend == "fused" and reasons:
        raise BackendError("fused", reasons)
    if call.backend == "generic" or reasons:
        w, _ = dispatch(call)
        return Evaluation(outer(w), outer.logits(w, outer.x))
    results = fused.execute(call, outer)
    shape = (*outer.tasks, outer.n, outer.c)
    loss = results.outer.reshape(outer.tasks)
    if outer.regularised:
        loss = loss + outer.regulariser(results.w.reshape(outer.shape))
    return Evaluation(loss, results.logits.reshape(shape))


def fused_reasons(call: Call, outer: LinearProblem) -> list[str]:
    """Why the unroll of `call` and the outer objective cannot be one operator; empty if they can."""
    reasons = fused.reasons(call)
    problem = call.problem
    if problem is not None and problem.loss != outer.loss:
        reasons.append(f"the outer loss is {outer.loss!r} but the inner one {problem.loss!r}")
    return reasons


def _check_pair(inner: LinearProblem, outer: LinearProblem) -> None:
    if inner.shape != outer.shape:
        raise ValueError(
            f"outer needs models of shape {list(outer.shape)} but inner trains {list(inner.shape)}: features, "
            "classes, bias and tasks must agree"
        )
    check_same("outer.x", outer.x, inner.x.dtype, inner.x.device, "inner.x")
