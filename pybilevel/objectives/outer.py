"""The outer objective of a fused problem on data of its own: fused with the unroll where it can be."""

from typing import Any, NamedTuple

from torch import Tensor

from pybilevel.checks import check_same
from pybilevel.engine import fused
from pybilevel.engine.arguments import normalise
from pybilevel.engine.call import Call
from pybilevel.engine.data import Data
from pybilevel.engine.unroll import dispatch
from pybilevel.errors import BackendError
from pybilevel.problems import MLP, LinearProblem, Problem


class Evaluation(NamedTuple):
    """Loss [*B], one a task, and logits [*B, m, c] of the trained models on the outer data."""

    loss: Tensor
    logits: Tensor


class Pair(NamedTuple):
    """A checked inner call and the outer problem, and why the two cannot be one operator (empty if they can)."""

    call: Call
    outer: Problem
    reasons: list[str]

    @property
    def fused(self) -> bool:
        """Whether the two run as one operator."""
        return self.call.backend != "generic" and not self.reasons


def pair_up(inner: Problem, outer: Problem, w0: Any, **options: Any) -> Pair:
    """Every check of `evaluate`, before anything is computed; `options` are those of `unroll`.

    Raises:
        as `unroll`; ValueError where inner and outer do not go together.
    """
    _check_pair(inner, outer)
    call = normalise(inner, w0, **options)
    outer = outer.promoted()
    reasons = _fused_reasons(call, outer)
    if call.backend == "fused" and reasons:
        raise BackendError("fused", reasons)
    return Pair(call, outer, reasons)


def evaluate(inner: Problem, outer: Problem, w0: Any, **options: Any) -> Evaluation:
    """Unroll `inner` and evaluate `outer` at w_T; arguments and errors are those of `pair_up`."""
    data = Data.of(inner), Data.of(outer)
    results, form = fused.again(*data, w0, options, objective=not outer.regularised)
    if results is None:
        pair = pair_up(inner, outer, w0, **options)
        call, outer = pair.call, pair.outer
        if not pair.fused:
            w, _ = dispatch(call)
            logits = outer.logits(w, outer.x)
            return Evaluation(outer.value(w, logits), logits)
        results = fused.execute(call._replace(form=form), outer)
    loss = results.outer
    if outer.regularised:
        loss = loss + outer.regulariser(fused.unpack(results.w, inner, w0))
    return Evaluation(loss, results.logits)


def _fused_reasons(call: Call, outer: Problem) -> list[str]:
    reasons = fused.reasons(call)
    problem = call.problem
    if problem is not None and problem.loss != outer.loss:
        reasons.append(f"the outer loss is {outer.loss!r} but the inner one {problem.loss!r}")
    if isinstance(problem, MLP) and isinstance(outer, MLP) and problem.activation != outer.activation:
        reasons.append(
            f"the outer activation is {outer.activation!r} but the inner one {problem.activation!r}"
        )
    return reasons


def _check_pair(inner: Problem, outer: Problem) -> None:
    if isinstance(inner, LinearProblem) and isinstance(outer, LinearProblem):
        if inner.shape != outer.shape:
            raise ValueError(
                f"outer needs models of shape {list(outer.shape)} but inner trains {list(inner.shape)}: features, "
                "classes, bias and tasks must agree"
            )
    elif not (isinstance(inner, MLP) and isinstance(outer, MLP)):
        raise ValueError(
            f"outer is a {type(outer).__name__} but inner a {type(inner).__name__}, which trains other parameters: "
            "make both a pb.MLP or both linear, or pass a callable w_T -> number as outer"
        )
    elif (inner.sizes, inner.tasks) != (outer.sizes, outer.tasks):
        raise ValueError(
            f"outer has sizes {list(outer.sizes)} and tasks {list(outer.tasks)} but inner has {list(inner.sizes)} and "
            f"{list(inner.tasks)}: they must agree"
        )
    check_same("outer.x", outer.x, inner.x.dtype, inner.x.device, "inner.x")
