"""What explain says of the three verbs is what the call then does, and its errors are those of the call."""

from unittest import mock

import pytest
import torch

import pybilevel as pb
from pybilevel.engine import fused, generic
from pybilevel.engine.arguments import normalise
from pybilevel.engine.itinerary import native_plan_bytes
from pybilevel.engine.layout import lay_out
from pybilevel.schedules import plan_bytes

STEPS = 12
X, Q = (torch.randn(3, k, 4, dtype=torch.float64, requires_grad=True) for k in (6, 5))
Y, V = (torch.arange(k).expand(3, k) % 3 for k in (6, 5))
INNER = pb.SoftmaxRegression(X, Y, num_classes=3)
OUTER = pb.SoftmaxRegression(Q, V, num_classes=3)
RULE = {"steps": STEPS, "optimizer": pb.SGD(0.2, 0.5)}

VERBS = {
    "unroll": (pb.unroll, (INNER,), {}),
    "ml_objective": (pb.ml_objective, (X, Y, Q, V), {"num_classes": 3}),
    "ho_objective": (pb.ho_objective, (INNER, OUTER), {}),
    "ho_objective, outer callable": (pb.ho_objective, (INNER, lambda w: w.square().sum()), {}),
    "ho_objective, both callable": (
        pb.ho_objective,
        (lambda w: INNER(w).sum(), lambda w: w.square().sum(), INNER.initial()),
        {},
    ),
}
"""Verb, its positional arguments, its keywords."""

OPTIONS = {
    "none": {},
    "store all": {"memory": pb.StoreAll()},
    "revolve": {"memory": pb.Revolve(3)},
    "budget": {"memory": "1MiB"},
    "generic": {"backend": "generic"},
    "generic revolve": {"backend": "generic", "memory": pb.Revolve(2)},
    "fused": {"backend": "fused"},
    "method": {"method": pb.Reverse()},
    "truncated": {"method": pb.Reverse(truncate=4), "memory": pb.StoreAll()},
    "no steps": {"steps": 0},
    "state": {"state": None},
    "w0": {"w0": torch.ones(3, 5, 3, dtype=torch.float64)},
}


def cases():
    """Every verb with every option that it takes."""
    for name in VERBS:
        for option, given in OPTIONS.items():
            if name == "ml_objective" and given.keys() & {"method", "state"}:
                continue
            if "both callable" in name and (option == "fused" or "w0" in given):
                continue
            yield pytest.param(name, given, id=f"{name}-{option}")


def both(name, **given):
    """The verb, and explain of it, as functions without arguments."""
    verb, args, kwargs = VERBS[name]
    kwargs = kwargs | RULE | given
    return (lambda: verb(*args, **kwargs)), (lambda: pb.explain(verb, *args, **kwargs))


def slots_of(run):
    """The backend that ran, and the slots of the plan it followed."""
    seen = []
    linear, made = fused.linear_unroll, generic.machine_for

    def fused_run(*arguments):
        seen.append(("fused", arguments[-4]))
        return linear(*arguments)

    def generic_machine(*arguments):
        machine = made(*arguments)
        seen.append(("generic", machine.slots))
        return machine

    with (
        mock.patch.object(fused, "linear_unroll", fused_run),
        mock.patch.object(generic, "machine_for", generic_machine),
    ):
        run()
    return seen


@pytest.mark.parametrize(("name", "given"), list(cases()))
def test_the_call_does_what_explain_says(name, given):
    run, explain = both(name, **given)
    explained, seen = explain(), slots_of(run)
    assert explained.steps == given.get("steps", STEPS)
    if explained.steps:
        assert seen == [(explained.backend, explained.slots)]
    assert (explained.coordinates is None) == (explained.backend == "generic")
    assert (explained.recomputation > 1) == isinstance(given.get("memory"), pb.Revolve)
    if isinstance(given.get("memory"), int):
        assert explained.peak_memory <= given["memory"]
    assert explained.backend in str(explained)


@pytest.mark.parametrize("name", ["unroll", "ml_objective", "ho_objective"])
def test_coordinates_and_peak_are_those_of_the_layout(name):
    explained = both(name, memory=pb.Revolve(3))[1]()
    layout = lay_out(normalise(INNER, memory=pb.Revolve(3), **RULE), None if name == "unroll" else OUTER)
    assert (explained.coordinates, explained.slots) == (layout.coordinates, 3)
    fixed = layout.scratch_bytes() + native_plan_bytes(layout.call)
    assert explained.peak_memory == plan_bytes(3, layout.state_bytes, fixed)
    bought = both(name, memory=explained.peak_memory)[1]()
    assert (bought.slots, bought.peak_memory) == (3, explained.peak_memory)


def test_bytes_moved_are_inputs_read_and_gradients_written():
    """All but settings, which are small; features are double, labels of 64 bits."""
    large = pb.SoftmaxRegression(
        torch.randn(400, 50, dtype=torch.float64), torch.arange(400) % 3, num_classes=3
    )
    told = pb.explain(pb.unroll, large, **RULE).bytes_moved
    inputs = 400 * 50 * 8 + 400 * 8
    assert 2 * inputs <= told < 2.1 * inputs


def test_a_hypergradient_is_its_objective():
    found = pb.explain(pb.hypergradient, INNER, OUTER, wrt=X, verify=True, **RULE)
    assert found == pb.explain(pb.ho_objective, INNER, OUTER, **RULE)


def test_an_outer_loss_of_another_kind_is_a_reason_and_the_inner_run_is_still_fused():
    outer = pb.LeastSquares(Q, V, num_classes=3)
    explained = pb.explain(pb.ho_objective, INNER, outer, **RULE)
    assert explained.backend == "fused"
    assert explained.reasons == ("the outer loss is 'squared' but the inner one 'softmax'",)


def test_operations_that_are_not_counted_are_not_called_zero():
    def loss(w):
        return w.cos().sum()

    explained = pb.explain(pb.unroll, loss, torch.ones(3, requires_grad=True), **RULE)
    assert explained.flops == 0 and "flops        not counted" in str(explained)
    product = pb.explain(pb.unroll, lambda w: (w @ w.mT).sum(), torch.ones(3, 3, requires_grad=True), **RULE)
    assert product.flops > 0 and "not counted" not in str(product)
    assert "not counted" not in str(both("unroll", steps=0)[1]())


OTHER = pb.SoftmaxRegression(Q, V, num_classes=4)
ERRORS = {
    "steps": ({"steps": -1}, list(VERBS)),
    "optimizer": ({"optimizer": 3}, list(VERBS)),
    "backend": ({"backend": "cuda"}, list(VERBS)),
    "memory": ({"memory": "many"}, list(VERBS)),
    "budget": ({"memory": 10}, list(VERBS)),
    "w0": (
        {"w0": torch.zeros(2)},
        ["unroll", "ml_objective", "ho_objective", "ho_objective, outer callable"],
    ),
    "method": ({"method": "forward"}, ["unroll", "ho_objective", "ho_objective, both callable"]),
    "batches": ({"batches": [1]}, ["unroll", "ho_objective", "ho_objective, both callable"]),
    "return_state": ({"return_state": True}, [v for v in VERBS if v.startswith("ho")]),
    "callback": ({"callback": 3}, [v for v in VERBS if v.startswith("ho")]),
    "hparams": ({"hparams": torch.ones(2)}, ["unroll", "ho_objective", "ho_objective, outer callable"]),
    "fused": ({"backend": "fused"}, ["ho_objective, both callable"]),
    "loss": ({"loss": "hinge"}, ["ml_objective"]),
    "weights": ({"weights": torch.ones(2)}, ["ml_objective"]),
    "w0 missing": ({"steps": 3}, ["no w0"]),
    "outer": ({"steps": 3}, ["no outer"]),
    "outer shape": ({"steps": 3}, ["outer of another shape"]),
    "outer loss": ({"backend": "fused"}, ["outer of another loss"]),
}
BAD_VERBS = {
    "no w0": (pb.ho_objective, (lambda w: w.sum(), OUTER), {}),
    "no outer": (pb.ho_objective, (INNER, 3), {}),
    "outer of another shape": (pb.ho_objective, (INNER, OTHER), {}),
    "outer of another loss": (pb.ho_objective, (INNER, pb.LeastSquares(Q, V, num_classes=3)), {}),
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for case in ERRORS for name in ERRORS[case][1]])
def test_errors_are_those_of_the_call(name, case):
    with mock.patch.dict(VERBS, BAD_VERBS):
        run, explain = both(name, **ERRORS[case][0])
        with pytest.raises((ValueError, TypeError, NotImplementedError)) as expected:
            run()
        with pytest.raises(type(expected.value)) as found:
            explain()
    if case != "fused":  # unroll's remedy says more
        assert str(found.value) == str(expected.value)
    assert str(found.value).splitlines()[0] == str(expected.value).splitlines()[0]
