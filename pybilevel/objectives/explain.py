"""Which way a call would go, why, and what it would cost, without running it."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

from pybilevel.engine.arguments import normalise
from pybilevel.engine.explain import explain_call
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.fused import describe_layout, layout_of
from pybilevel.engine.unroll import unroll
from pybilevel.objectives.hypergradient import hypergradient
from pybilevel.objectives.hyperopt import check_levels, ho_objective
from pybilevel.objectives.meta import ml_objective, problem_pair
from pybilevel.objectives.outer import pair_up
from pybilevel.problems import Problem


def explain(verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """How `verb(*args, **kwargs)` would run: `print(pb.explain(pb.unroll, inner, steps=10, optimizer=...))`.

    Args:
        verb: `pb.unroll`, `pb.ml_objective`, `pb.ho_objective` or `pb.hypergradient` (without what verify=True adds);
            the other arguments are its own.

    Returns:
        An object with fields (backend, coordinates, regime, reasons, schedule, flops, peak_memory, ...) that prints
        as a table.

    Cost: nothing for the fused kernels; the generic engine runs one step and its pullback to count operations.

    Raises:
        what the call itself would raise about its arguments; TypeError for another verb.
    """
    if verb is unroll:
        return explain_call(normalise(*args, **kwargs))
    if verb is ml_objective:
        return _explain_meta(args, kwargs)
    if verb in (ho_objective, hypergradient):
        of_its_own = ("wrt", "verify") if verb is hypergradient else ()
        return _explain_hyperopt(args, {k: v for k, v in kwargs.items() if k not in of_its_own})
    raise TypeError(
        f"explain knows pb.unroll, pb.ml_objective, pb.ho_objective and pb.hypergradient, got {verb!r}"
    )


def _explain_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    given = signature(ml_objective).bind(*args, **kwargs).arguments
    shared = [name for name in ("steps", "optimizer", "memory", "backend", "precision") if name in given]
    options: dict[str, Any] = {name: given.pop(name) for name in shared}
    w0 = given.pop("w0", None)
    inner, outer = problem_pair(**given)
    return _explain_pair(inner, outer, w0, options)


def _explain_hyperopt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    given = signature(ho_objective).bind(*args, **kwargs).arguments
    options: dict[str, Any] = given.pop("options", {})
    inner, outer = given.pop("inner"), given.pop("outer")
    check_levels(inner, outer, given.get("hparams"), options)
    if isinstance(inner, Problem) and isinstance(outer, Problem):
        given.pop("hparams", None)
        return _explain_pair(inner, outer, given.pop("w0", None), {**given, **options})
    return explain_call(normalise(inner, **given, **options))


def _explain_pair(inner: Problem, outer: Problem, w0: Any, options: dict[str, Any]) -> Explanation:
    pair = pair_up(inner, outer, w0, **options)
    if pair.fused:
        return describe_layout(layout_of(pair.call, pair.outer))
    # two operators: the inner run may still be fused, and the reasons are why the outer one is not in it
    explained = explain_call(pair.call)
    return replace(explained, reasons=explained.reasons or tuple(pair.reasons))
