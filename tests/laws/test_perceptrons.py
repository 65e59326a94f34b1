"""The law of fused perceptrons: values and every hypergradient are those of autograd through a plain loop (float64).

The grid is the registry: a new activation, row loss or optimizer is tested by being registered.
"""

import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from linear_cases import FORMS, STRIDES, total
from linear_optimizers import RICHEST, USUAL, VARIANTS
from mlp_cases import ACTIVATIONS, LOSSES, REGIMES, Built, MlpCase, exact, forced, plain, solve
from tolerance import FINITE_DIFFERENCE_LIMIT, assert_all_match, assert_matches

import pybilevel as pb
from pybilevel import _C

ROWS = [(loss, targets) for loss, kinds in LOSSES.items() for targets in kinds]
OPTIMIZERS = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def assert_law(case, regime="tasks", **options):
    with forced(regime):
        found = solve(case, **options)
    expected = exact(case)
    assert_all_match(found.values, expected.values)
    assert_all_match(found.gradients, expected.gradients)


def test_the_losses_are_those_of_the_registry():
    x, y = torch.zeros(2, 1), torch.zeros(2, 1)
    names = {pb.MLP(x, y, sizes=(1, 1), loss=loss).loss for loss in LOSSES}
    assert names == {loss for loss, _ in _C.registry()["problems"]}


@pytest.mark.parametrize("objective", ["state", "ho"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("loss", "targets"), ROWS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_registry(activation, loss, targets, regime, objective):
    """Every activation x loss x targets, in every regime, through unroll and the HO objective."""
    case = MlpCase(loss, targets, activation, objective=objective)
    assert_law(case, regime)


@pytest.mark.parametrize("objective", ["state", "ho"])
@pytest.mark.parametrize(("optimizer", "variant"), OPTIMIZERS)
def test_optimizers(optimizer, variant, objective):
    assert_law(MlpCase(optimizer=optimizer, variant=variant, objective=objective))


@pytest.mark.parametrize("forms", [(a, b) for a in FORMS for b in FORMS])
def test_setting_forms(forms):
    assert_law(MlpCase(variant="nesterov-decay", forms=forms, tasks=(2, 2)))


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("loss", "targets"), ROWS)
def test_memory_layouts(loss, targets, strides):
    """Transposed, rotated (the task axis innermost), sliced and expanded tensors, all inputs alike."""
    assert_law(MlpCase(loss, targets, strides=strides, tasks=(2, 3)))


EDGES = {
    "one row": {"n": 1, "m": 1},
    "one of everything": {"n": 1, "m": 1, "sizes": (1, 1, 1), "tasks": (), "steps": 1},
    "no hidden layer": {"sizes": (3, 2)},
    "no hidden layer, one output": {"sizes": (4, 1)},
    "one output": {"sizes": (2, 6, 1)},
    "whole packs": {"sizes": (8, 16, 8, 8), "n": 8, "m": 16},
    "one past a pack": {"sizes": (9, 17, 9), "n": 9, "m": 17},
    "growing": {"sizes": (1, 2, 5, 12, 31)},
    "eight layers": {"sizes": (2, 3, 4, 3, 4, 3, 4, 3, 2)},
    "panels of packs, and rests": {"sizes": (2, 13, 27, 46, 3), "n": 11},
    "sinusoid": {"sizes": (1, 40, 40, 1), "n": 10, "m": 10, "activation": "relu", "tasks": (5,)},
    "no tasks dimension": {"tasks": ()},
    "no task": {"tasks": (0,)},
    "two dimensions of tasks": {"tasks": (2, 2)},
    "many tasks": {"tasks": (37,), "n": 3, "sizes": (2, 5, 2)},
    "shared": {"shared": True},
    "shared, two dimensions of tasks": {"shared": True, "tasks": (2, 3)},
    "many rows": {"n": 300, "m": 270, "tasks": (), "steps": 2},
    "sum": {"reduction": "sum"},
    "no weights": {"weights": "none"},
    "zero weights": {"weights": "zeros"},
    "one l2 for all": {"l2": "scalar"},
    "numbers": {"weights": "none", "l2": "number", "forms": ("number",)},
    "one step": {"steps": 1},
    "many steps": {"steps": 40, "sizes": (2, 4, 2)},
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge, regime):
    assert_law(MlpCase(**EDGES[edge]), regime)


LARGE = 1e3


@st.composite
def any_case(draw):
    """A case of awkward sizes."""

    def pick(*values):
        return draw(st.sampled_from(values))

    loss, targets = pick(*ROWS)
    optimizer, variant = pick(*OPTIMIZERS)
    return MlpCase(
        loss,
        targets,
        pick(*ACTIVATIONS),
        optimizer,
        variant,
        tasks=pick((), (1,), (4,), (2, 2), (0,)),
        n=pick(1, 2, 5, 8, 13, 70),
        m=pick(1, 3, 8, 11, 65),
        sizes=tuple(pick(1, 2, 7, 8, 11, 33) for _ in range(pick(2, 3, 4))),
        steps=pick(2, 4, 6),  # in one step of Adam, the derivative in beta2 is 0 up to rounding
        reduction=pick("mean", "sum"),
        forms=tuple(pick(*FORMS) for _ in range(3)),
        l2=pick("number", "scalar", "task"),
        weights=pick("none", "random", "zeros"),
        shared=pick(True, False),
        strides=pick(*STRIDES),
        objective=pick("state", "ho"),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=100)
@given(any_case(), st.sampled_from(REGIMES))
def test_sampled(case, regime):
    """The rest of the grid, a hundred draws at a time, against the generic engine, whose laws are its own.

    Training that runs away is no case: units saturate, and 1 - exp(-40) is 1.
    """
    try:
        expected = solve(case, backend="generic")
    except pb.DivergenceError:
        reject()
    assume(all(value.abs().max() < LARGE for value in expected.values.values() if value.numel()))
    with forced(regime):
        found = solve(case)
    assert_all_match(found.values, expected.values)
    assert_all_match(found.gradients, expected.gradients)


@pytest.mark.parametrize("truncate", [1, 3, 5, 9])
@pytest.mark.parametrize("objective", ["state", "ho"])
def test_truncation(objective, truncate):
    case = MlpCase(steps=5, objective=objective)
    found = solve(case, method=pb.Reverse(truncate=truncate))
    expected = exact(case, truncate)
    assert_all_match(found.values, expected.values)
    assert_all_match(found.gradients, expected.gradients)


@pytest.mark.parametrize("optimizer", USUAL)
def test_state(optimizer):
    """unroll(a + b) = unroll(b, state=unroll(a)): values bitwise, and gradients through the state."""
    case = MlpCase(optimizer=optimizer, variant=USUAL[optimizer], steps=7, objective="state")
    leaves = case.inputs()
    built = Built(case, leaves)
    state, given = None, built.w0
    for part in (slice(0, 4), slice(4, 7)):
        solver = built.solver({name: value[..., part] for name, value in built.settings.items()})
        w, state = pb.unroll(
            built.problem,
            given,
            steps=part.stop - part.start,
            optimizer=solver,
            state=state,
            return_state=True,
            backend="fused",
        )
        given = None
    assert state.step == 7
    values = {f"w{i}": leaf for i, leaf in enumerate(x for pair in w for x in pair)} | built.buffers(state)
    whole = solve(case)
    for name, value in whole.values.items():
        assert torch.equal(values[name], value), name
    found = torch.autograd.grad(total(values), list(leaves.values()))
    assert_all_match(dict(zip(leaves, found, strict=True)), exact(case).gradients)


@pytest.mark.parametrize("optimizer", RICHEST)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32(activation, optimizer):
    """As exact as the policy says, 5e-6 or twice the error of plain PyTorch in float32, both against float64."""
    case = MlpCase(
        activation=activation,
        optimizer=optimizer,
        variant=RICHEST[optimizer],
        sizes=(3, 20, 20, 2),
        n=15,
        dtype=torch.float32,
    )
    found, ordinary, best = solve(case), plain(case), exact(case)
    for a, b, c in (
        (found.values, best.values, ordinary.values),
        (found.gradients, best.gradients, ordinary.gradients),
    ):
        for name in b:
            assert_matches(a[name], b[name], name, c[name])


EPSILON = 1e-5


@pytest.mark.parametrize("name", MlpCase(variant="nesterov-decay").inputs())
def test_central_difference(name):
    """Once per input: gradients are what finite differences of the fused values say, whatever the oracle believes."""
    case = MlpCase(variant="nesterov-decay")
    leaves = case.inputs()
    direction = torch.randn_like(leaves[name])

    def outer(shift):
        return total(Built(case, leaves | {name: leaves[name] + shift * direction}).run())

    (gradient,) = torch.autograd.grad(outer(0.0), leaves[name])
    with torch.no_grad():
        slope = (outer(EPSILON) - outer(-EPSILON)) / (2 * EPSILON)
    expected = (gradient * direction).sum()
    assert abs(slope - expected) <= FINITE_DIFFERENCE_LIMIT * max(abs(expected), gradient.norm())


def test_padding():
    """Rows of weight 0 change nothing and get no gradient: ragged tasks (of 5 rows and of 9) in one batch."""
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 9, 2, dtype=torch.float64)
    weights = (torch.arange(9) < torch.tensor([5, 9])[:, None]).double()
    w0 = pb.MLP.init((3, 7, 2), dtype=torch.float64)

    def train(x, y, weights):
        problem = pb.MLP(x, y, sizes=(3, 7, 2), weights=weights, reduction="sum", activation="tanh")
        w = pb.unroll(problem, w0, steps=4, optimizer=pb.SGD(0.05, momentum=0.5), backend="fused")
        return w[0][0]

    together = train(x, y, weights)
    (x_bar,) = torch.autograd.grad(together.sin().sum(), x)
    for task, n in enumerate((5, 9)):
        alone = train(x[task, :n], y[task, :n], weights[task, :n])
        (expected,) = torch.autograd.grad(alone.sin().sum(), x)
        assert_matches(together[task].detach(), alone.detach())
        assert_matches(x_bar[task], expected[task])
    assert not x_bar[0, 5:].any()


def test_saturated_units():
    """Scores of size 1e4: every activation saturates or grows, and no gradient is NaN."""
    for activation in ACTIVATIONS:
        case = MlpCase("cross_entropy", "labels", activation, "sgd", "plain", steps=2)
        leaves = case.inputs()
        with torch.no_grad():
            leaves["x"].mul_(1e4)
        found = torch.autograd.grad(total(Built(case, leaves).run()), list(leaves.values()))
        for name, gradient in zip(leaves, found, strict=True):
            assert gradient.isfinite().all(), (activation, name)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["state", "ho"])
@pytest.mark.parametrize(("loss", "targets"), ROWS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_registry_on_a_gpu(activation, loss, targets, objective):
    assert_law(MlpCase(loss, targets, activation, objective=objective, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(("optimizer", "variant"), OPTIMIZERS)
def test_optimizers_on_a_gpu(optimizer, variant):
    assert_law(MlpCase(optimizer=optimizer, variant=variant, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("edge", EDGES)
def test_edges_on_a_gpu(edge):
    assert_law(MlpCase(**EDGES[edge], device="cuda"))
