"""The law of the fused problems: values and every hypergradient are those of autograd through a plain loop (float64).

The grid is the registry: a new row loss or optimizer is tested by being registered, and by an entry in the tables of
`linear_cases`.
"""

import pytest
import torch
from any_case import any_case
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import (
    FORMS,
    OBJECTIVES,
    PAIRS,
    PROBLEMS,
    ROWS,
    STRIDES,
    TARGETS,
    Built,
    Case,
    exact,
    forced,
    fused,
    regimes,
    total,
)
from linear_optimizers import LINEAR, RICHEST, USUAL, VARIANTS
from optimizer_cases import build, optimizers
from tolerance import FLOAT64_LIMIT, assert_all_match, assert_matches

import pybilevel as pb
from pybilevel import _C
from pybilevel.engine import oracle


def case_of(pair, **options):
    loss, targets, _, optimizer, variant = pair
    return Case(loss=loss, targets=targets, optimizer=optimizer, variant=variant, **options)


def assert_law(case, way, regime="tasks"):
    with forced(way, regime):
        found = fused(case)
    expected = exact(case)
    assert_all_match(found.values, expected.values)
    gradients = dict(expected.gradients)
    if case.steps == 1:  # of which Adam's betas change nothing: their gradients are mere rounding
        for name in {"beta1", "beta2"} & gradients.keys():
            assert (found.gradients.pop(name) - gradients.pop(name)).abs().sum() <= FLOAT64_LIMIT
    assert_all_match(found.gradients, gradients)


def test_registry_has_data():
    """A row without data would leave the laws untested."""
    losses = {loss for loss, _ in _C.registry()["problems"]}
    native = _C.registry()["optimizers"]
    assert losses == set(PROBLEMS) == set(TARGETS)
    assert set(native) == set(VARIANTS) == set(USUAL) == set(RICHEST)
    for name, row in native.items():
        settings, flags = VARIANTS[name][RICHEST[name]]
        assert {*row["settings"]} - {""} == set(settings) and set(row["flags"]) == set(flags)
    ways = {(loss, way) for loss, _, way, _ in ROWS}
    assert ways == set(_C.registry()["problems"]) | {(loss, "lanes") for loss in losses}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("pair", "regime"),
    [pytest.param(p, r, id="-".join((*p, r))) for p in PAIRS for r in regimes(p[2])],
)
def test_registry(pair, regime, objective):
    """Every problem x optimizer x coordinates x input, in every regime, through every public objective."""
    assert_law(case_of(pair, objective=objective), pair[2], regime)


@pytest.mark.parametrize("forms", [(a, b) for a in FORMS for b in FORMS])
@pytest.mark.parametrize("way", ["primal", "dual", "lanes", "normal"])
def test_setting_forms(way, forms):
    loss, targets = ("squared", "soft") if way == "normal" else ("softmax", "labels")
    assert_law(Case(loss, targets, variant="nesterov-decay", forms=forms, tasks=(2, 2)), way)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_memory_layouts(row, strides):
    """Transposed, rotated (the task axis innermost), sliced and expanded tensors, all inputs alike."""
    assert_law(case_of((*row, RICHEST[row[-1]]), strides=strides, tasks=(2, 3)), row[2])


EDGES = {
    "one row": {"n": 1, "m": 1},
    "one feature": {"d": 1},
    "one output": {"c": 1},
    "all one": {"n": 1, "m": 1, "d": 1, "c": 1, "tasks": (), "steps": 1},
    "no tasks dimension": {"tasks": ()},
    "no task": {"tasks": (0,)},
    "no task of two dimensions": {"tasks": (2, 0)},
    "two dimensions of tasks": {"tasks": (2, 2)},
    "many tasks": {"tasks": (37,), "n": 3, "d": 2, "c": 2},
    "several blocks": {"n": 70, "m": 130, "tasks": ()},
    "several chunks": {"n": 300, "m": 530, "d": 3, "c": 3, "tasks": (), "steps": 3},
    "whole packs": {"tasks": (16,), "n": 5, "m": 4, "d": 3, "c": 2},
    "one past a lane": {"n": 9, "m": 17, "d": 9, "c": 9},
    "no bias": {"bias": False},
    "sum": {"reduction": "sum"},
    "no weights": {"weights": "none"},
    "zero weights": {"weights": "zeros"},
    "from zeros": {"w0": False},
    "one l2 for all": {"l2": "scalar"},
    "plain": {"w0": False, "weights": "none", "l2": "number", "forms": ("number",)},
    "one step": {"steps": 1},
    "many steps": {"steps": 33, "n": 3, "d": 3, "c": 2},
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_edges(row, edge):
    assert_law(case_of((*row, USUAL[row[-1]]), **EDGES[edge]), row[2])


COTANGENTS = {
    "expanded": lambda v: v.sum(),
    "partly expanded": lambda v: v.sum(0).sin().sum(),
    "transposed": lambda v: (v.movedim(0, -1).contiguous() * torch.arange(1.0, 1 + v.shape[0])).sum(),
    "strided": lambda v: v[..., ::2].square().sum(),
}


@pytest.mark.parametrize(
    "of", [("w",), ("buffer0",), ("loss",), ("logits",), ("w", "buffer0"), ("loss", "logits")]
)
@pytest.mark.parametrize("cotangent", COTANGENTS)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_cotangents(row, cotangent, of):
    """Of one result or of several, however the memory of the cotangents lies."""
    case = case_of((*row, USUAL[row[-1]]), objective="ml" if "lo" in of[0] else "state")
    leaves = case.inputs()
    built = Built(case, leaves)
    with forced(row[2]):
        pairs = [built.fused(), built.oracle()]
        found, expected = (
            torch.autograd.grad(
                sum(COTANGENTS[cotangent](values[name]) for name in of),
                list(leaves.values()),
                allow_unused=True,
                materialize_grads=True,
            )
            for values in pairs
        )
    # as one vector: the sum of all columns does not depend on the data of a softmax, so that most of them are zero
    assert_matches(*(torch.cat([gradient.flatten() for gradient in each]) for each in (found, expected)))


@settings(max_examples=400)
@given(any_case(), st.sampled_from(["tasks", "rows"]))
def test_sampled(drawn, regime):
    """The rest of the grid, four hundred draws at a time."""
    way, case = drawn
    assert_law(case, way, regime)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_padding(row):
    """Rows of weight 0 change nothing and get no gradient: ragged tasks (here of 5 rows and of 9) in one batch."""
    loss, targets, coordinates, optimizer = row
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 9)) if targets == "labels" else torch.rand(2, 9, 3, dtype=torch.float64)
    rows = torch.tensor([5, 9])
    weights = (torch.arange(9) < rows[:, None]).double()
    classes = {"num_classes": 3} if targets == "labels" else {}
    numbers, flags = VARIANTS[optimizer][USUAL[optimizer]]
    solver = build(optimizers()[optimizer], **numbers | {"lr": 0.05}, **flags)

    def solve(x, y, weights):
        problem = PROBLEMS[loss](x, y, weights=weights, l2=0.1, reduction="sum", **classes)
        return pb.unroll(problem, steps=4, optimizer=solver, backend="fused")

    with forced(coordinates):
        together = solve(x, y, weights)
        (x_bar,) = torch.autograd.grad(together.sin().sum(), x)
        for task, n in enumerate(rows.tolist()):
            alone = solve(x[task, :n], y[task, :n], weights[task, :n])
            (expected,) = torch.autograd.grad(alone.sin().sum(), x)
            assert_matches(together[task].detach(), alone.detach())
            assert_matches(x_bar[task], expected[task])
    assert not x_bar[0, 5:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_huge_logits(row, dtype):
    """Logits of size 1e4 and more: softmax saturates, nothing overflows, no gradient is NaN."""
    case = case_of((*row, "plain"), amplitude=1e2, steps=2, dtype=dtype, objective="ml", forms=("both",))
    leaves = case.inputs()
    with torch.no_grad():
        leaves["w0"].mul_(1e2)
        leaves["lr"].mul_(1.0 if case.loss == "softmax" else 1e-4)
    with forced(row[2]):
        values = Built(case, leaves).fused()
    found = torch.autograd.grad(total(values), list(leaves.values()))
    assert values["logits"].abs().max() > 1e3
    for name, tensor in [*values.items(), *zip(leaves, found, strict=True)]:
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("row", [row for row in ROWS if row[-1] in LINEAR], ids="-".join)
def test_ties(row):
    """Equal rows and equal classes from zeros: every logit ties, at every step."""
    loss, targets, coordinates, _ = row
    leaves = {
        "x": torch.ones(6, 3, dtype=torch.float64, requires_grad=True),
        "w0": torch.zeros(4, 3, dtype=torch.float64, requires_grad=True),
    }
    y = torch.arange(6) % 3
    y = y if targets == "labels" else torch.nn.functional.one_hot(y).double()
    problem = PROBLEMS[loss](leaves["x"], y, l2=0.1)
    with forced(coordinates):
        w = pb.unroll(problem, leaves["w0"], steps=5, optimizer=pb.SGD(0.5, momentum=0.5), backend="fused")
    expected, _ = oracle.unroll(problem, leaves["w0"], steps=5, lr=0.5, momentum=0.5)
    assert_matches(w, expected)
    functional = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    found, exact_gradients = (
        torch.autograd.grad((w * functional).sum(), list(leaves.values())) for w in (w, expected)
    )
    assert_all_match(found, exact_gradients)
