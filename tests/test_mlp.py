"""`pb.MLP` as a value: formula, parameters, errors; and what its fused engine tells and refuses."""

from itertools import pairwise
from unittest import mock

import pytest
import torch
from meter import Meter
from mlp_cases import MlpCase, solve
from tolerance import assert_all_match, assert_matches
from torch import nn
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel.engine import fused, perceptron

SIZES = (3, 8, 5, 2)
MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "elu": nn.ELU}
SGD = pb.SGD(0.1)


def data(*tasks, n=6, c=2, dtype=torch.float64):
    return torch.randn(*tasks, n, SIZES[0], dtype=dtype), torch.randn(*tasks, n, c, dtype=dtype)


def of(x, y, **options):
    return pb.MLP(x, y, sizes=SIZES, **options)


@pytest.mark.parametrize("activation", MODULES)
def test_it_is_a_sequential_of_torch(activation):
    """Value by nn.Sequential, whose weights are the transposes."""
    x, y = data()
    layers = []
    for i, o in pairwise(SIZES):
        layers += [nn.Linear(i, o, dtype=torch.float64), MODULES[activation]()]
    net = nn.Sequential(*layers[:-1])
    w = [(layer.weight.mT, layer.bias) for layer in net if isinstance(layer, nn.Linear)]
    problem = of(x, y, activation=activation, l2=0.3)
    penalty = sum(weight.square().sum() for weight, _ in w)
    assert_matches(problem.logits(w, x), net(x))
    assert_matches(problem(w), 0.5 * (net(x) - y).square().sum() / 6 + 0.15 * penalty)


def test_cross_entropy_is_that_of_torch():
    x, _ = data(4)
    y, weights = torch.randint(2, (4, 6)), torch.rand(4, 6, dtype=torch.float64)
    problem = of(x, y, loss="cross_entropy", weights=weights, reduction="sum")
    w = problem.initial(pb.MLP.init(SIZES, dtype=torch.float64))
    rows = nn.functional.cross_entropy(problem.logits(w, x).flatten(0, 1), y.flatten(), reduction="none")
    assert_matches(problem(w), (rows.reshape(4, 6) * weights).sum(-1))


def test_targets_of_squared_error():
    """[*B, n] is one output; integer classes are one-hot rows."""
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6)
    w = pb.MLP.init((3, 4, 1))
    assert torch.equal(pb.MLP(x, y, sizes=(3, 4, 1))(w), pb.MLP(x, y[..., None], sizes=(3, 4, 1))(w))
    classes = torch.randint(2, (2, 6))
    w = pb.MLP.init(SIZES)
    assert torch.equal(of(x, classes)(w), of(x, nn.functional.one_hot(classes, 2).float())(w))


def test_initial_parameters_are_those_of_linear_layers():
    w = pb.MLP.init((400, 300, 2), generator=torch.Generator().manual_seed(0))
    assert [tuple(leaf.shape) for leaf in pytree.tree_leaves(w)] == [(400, 300), (300,), (300, 2), (2,)]
    assert w[0][0].abs().max() <= 0.05 and abs(w[0][0].std() - 0.05 / 3**0.5) < 1e-3
    again = pb.MLP.init((400, 300, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(w[1][0], again[1][0])
    assert pb.MLP.init(SIZES, dtype=torch.float64)[0][0].dtype == torch.float64


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_parameters_keep_their_container(backend):
    """Any pytree with the leaves in order: a list of pairs, a dictionary of names; shared leaves get the sum."""
    x, y = data(3)
    leaves = [leaf.requires_grad_() for leaf in pytree.tree_leaves(pb.MLP.init(SIZES, dtype=torch.float64))]
    named = {
        f"{kind}{i // 2}": leaf for i, (kind, leaf) in enumerate(zip(["w", "b"] * 3, leaves, strict=True))
    }
    w = pb.unroll(of(x, y), named, steps=2, optimizer=SGD, backend=backend)
    assert list(w) == list(named) and all(w[name].shape == (3, *named[name].shape) for name in named)
    total = sum(leaf.sin().sum() for leaf in w.values())
    each = [leaf.detach().expand(3, *leaf.shape).clone().requires_grad_() for leaf in leaves]
    alone = pb.unroll(of(x, y), each, steps=2, optimizer=SGD, backend=backend)
    expected = torch.autograd.grad(sum(leaf.sin().sum() for leaf in alone), each)
    assert_all_match(torch.autograd.grad(total, leaves), [bar.sum(0) for bar in expected])


def test_half_is_computed_in_float32():
    x, y = data(dtype=torch.float32)
    w0 = pb.MLP.init(SIZES)
    low = [(w.bfloat16(), b.bfloat16()) for w, b in w0]
    w = pb.unroll(of(x.bfloat16(), y.bfloat16()), low, steps=2, optimizer=SGD, backend="fused")
    same = [(w.float(), b.float()) for w, b in low]
    expected = pb.unroll(of(x.bfloat16().float(), y.bfloat16().float()), same, steps=2, optimizer=SGD)
    assert w[0][0].dtype == torch.float32 and torch.equal(w[1][0], expected[1][0])


X, Y = torch.zeros(6, 3), torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pb.MLP(X, Y, sizes=(4, 2)), ValueError, r"sizes\[0\] is 4 but x has 3 features"),
        (lambda: pb.MLP(X, Y, sizes=(3, 7)), ValueError, r"sizes\[-1\] is 7 but y has 2 columns"),
        (lambda: pb.MLP(X, Y, sizes=(3,)), ValueError, r"2 to 9 widths >= 1, got \[3\]"),
        (lambda: pb.MLP(X, Y, sizes=[3] * 9 + [2]), ValueError, "deeper networks pass a callable"),
        (lambda: pb.MLP(X, Y, sizes=(3, 0, 2)), ValueError, r"got \[3, 0, 2\]"),
        (lambda: pb.MLP(X, Y, sizes=(3, 4.0, 2)), TypeError, "sizes must be integers"),
        (lambda: pb.MLP(X, Y, sizes=40), TypeError, "such as"),
        (lambda: of(X, Y, activation="gelu"), ValueError, "relu, tanh, sigmoid, softplus, elu, got 'gelu'"),
        (lambda: of(X, Y, loss="hinge"), ValueError, "squared_error, cross_entropy, got 'hinge'"),
        (lambda: of(X, Y, l2=-1.0), ValueError, "l2 must be"),
        (lambda: of(X, torch.full((6,), 2), loss="cross_entropy"), ValueError, r"label 2, outside \[0, 2\)"),
        (lambda: of(X, Y, weights=torch.ones(5)), ValueError, r"weights must be \[\*B, n\] = \[6\]"),
        (lambda: pb.MLP.init(()), TypeError, "sizes must be integers"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


W0 = pb.MLP.init(SIZES)


@pytest.mark.parametrize(
    ("w0", "error", "message"),
    [
        (None, ValueError, r"zeros would not train a pb.MLP: .* w0=pb.MLP.init\(\(3, 8, 5, 2\)\)"),
        (W0[:2], ValueError, r"w0 has 4 leaves but sizes \[3, 8, 5, 2\] need 6"),
        (
            [*W0[:2], (W0[2][0].mT, W0[2][1])],
            ValueError,
            r"leaf 4 of w0 \(weight 3\) has shape \[2, 5\] .* \[5, 2\]: pass weight.mT of a torch.nn.Linear",
        ),
        ([*W0[:2], (W0[2][0], W0[2][1].double())], TypeError, r"leaf 5 of w0 \(bias 3\) is torch.float64"),
        ([*W0[:2], (W0[2][0], [0.0, 0.0])], ValueError, "leaves"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "generic"])
def test_errors_of_w0(w0, error, message, backend):
    with pytest.raises(error, match=message):
        pb.unroll(of(X, Y), w0, steps=2, optimizer=SGD, backend=backend)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        (lambda: pb.LeastSquares(X, Y), "outer is a LeastSquares but inner a MLP"),
        (lambda: pb.MLP(X, Y, sizes=(3, 2)), r"outer has sizes \[3, 2\] and tasks \[\] but inner has"),
        (lambda: of(X.expand(4, 6, 3), Y.expand(4, 6, 2)), r"tasks \[4\] but"),
    ],
)
def test_errors_of_a_pair(outer, message):
    with pytest.raises(ValueError, match=message):
        pb.ho_objective(of(X, Y), outer(), W0, steps=2, optimizer=SGD)


def test_an_outer_problem_that_cannot_be_fused_is_evaluated_beside():
    """Another loss or activation than the inner one: two operators, the same value, and the reason is told."""
    x, y = data()
    inner, w0 = of(x, y), pb.MLP.init(SIZES, dtype=torch.float64)
    labels = torch.randint(2, (6,))
    for outer, word in (
        (of(x, labels, loss="cross_entropy"), "loss"),
        (of(x, y, activation="tanh"), "activation"),
    ):
        given = {"steps": 2, "optimizer": SGD}
        assert_matches(
            pb.ho_objective(inner, outer, w0, **given),
            outer(pb.unroll(inner, w0, backend="generic", **given)),
        )
        assert f"the outer {word} is" in str(pb.explain(pb.ho_objective, inner, outer, w0, **given))
        with pytest.raises(pb.BackendError, match=f"the outer {word} is"):
            pb.ho_objective(inner, outer, w0, backend="fused", **given)


def test_a_callable_outer():
    x, y = data(3)
    w0 = [tuple(leaf.requires_grad_() for leaf in pair) for pair in pb.MLP.init(SIZES, dtype=torch.float64)]
    leaves = pytree.tree_leaves(w0)
    inner, outer = of(x, y), of(*data(3))

    def grads(outer, **options):
        value = pb.ho_objective(inner, outer, w0, steps=3, optimizer=SGD, **options)
        return torch.autograd.grad(value.sum(), leaves)

    expected = grads(lambda w: outer(w), backend="generic")
    assert_all_match(grads(lambda w: outer(w), backend="fused"), expected)
    assert_all_match(grads(outer), expected)
    found = pb.hypergradient(inner, outer, w0, steps=3, optimizer=SGD, wrt=w0)
    assert_all_match(pytree.tree_leaves(found.grads), expected)


def test_what_the_fused_engine_leaves_to_the_generic_one():
    x, y = data(3)
    w0 = pb.MLP.init(SIZES, dtype=torch.float64)
    problem = of(x, y)
    rates = pytree.tree_map(lambda leaf: torch.full((3, *leaf.shape), 0.1, dtype=leaf.dtype), w0)
    rows = torch.randint(6, (2, 3, 4))
    for options in ({"optimizer": pb.SGD(rates)}, {"optimizer": SGD, "batches": rows}):
        with pytest.raises(pb.BackendError):
            pb.unroll(problem, w0, steps=2, backend="fused", **options)
        w = pb.unroll(problem, w0, steps=2, **options)
        assert w[0][0].shape == (3, 3, 8)
    expected = pb.unroll(problem, w0, steps=2, optimizer=SGD)
    assert_all_match(
        pytree.tree_leaves(pb.unroll(problem, w0, steps=2, optimizer=pb.SGD(rates))),
        pytree.tree_leaves(expected),
    )


def test_a_gpu_is_a_reason_for_the_generic_engine_where_the_build_has_no_kernels_for_it():
    """And none where it has; a block then runs a task, however large."""
    big = pb.MLP(torch.zeros(1000, 50), torch.zeros(1000, 2), sizes=(50, 60, 2))
    assert perceptron.choose_regime(big) == "rows"
    with mock.patch.object(pb.MLP, "device", torch.device("cuda")):
        with mock.patch.object(fused, "CUDA", False):
            assert fused._device_reasons(big) == ["device cuda (this build has kernels for cpu)"]
        with mock.patch.object(fused, "CUDA", True):
            assert fused._device_reasons(big) == []
        assert perceptron.choose_regime(big) == "tasks"


def test_no_step_returns_w0():
    x, y = data(3)
    w0 = [tuple(leaf.requires_grad_() for leaf in pair) for pair in pb.MLP.init(SIZES, dtype=torch.float64)]
    w = pb.unroll(of(x, y), w0, steps=0, optimizer=SGD)
    assert torch.equal(w[0][0], w0[0][0].expand(3, 3, 8))
    (bar,) = torch.autograd.grad(w[0][0].sum(), w0[0][0])
    assert torch.equal(bar, torch.full_like(bar, 3.0))


def test_divergence_names_its_step():
    problem = of(*data(), activation="tanh")  # torch drops an infinite cotangent where a relu is off
    w0 = pb.MLP.init(SIZES, dtype=torch.float64)
    with pytest.raises(pb.DivergenceError) as native:
        pb.unroll(problem, w0, steps=300, optimizer=pb.SGD(1e3), backend="fused")
    with pytest.raises(pb.DivergenceError) as generic:
        pb.unroll(problem, w0, steps=300, optimizer=pb.SGD(1e3), backend="generic")
    assert native.value.step == generic.value.step
    w0[0][0][0, 0] = torch.nan
    with pytest.raises(pb.DivergenceError) as at_once:
        pb.unroll(problem, w0, steps=3, optimizer=SGD, backend="fused")
    assert at_once.value.step == 0


def test_explain():
    x, y = data(25, n=10)
    w0 = [tuple(leaf.requires_grad_() for leaf in pair) for pair in pb.MLP.init(SIZES, dtype=torch.float64)]
    told = pb.explain(pb.unroll, of(x, y), w0, steps=5, optimizer=SGD)
    assert told.backend == "fused" and told.coordinates is None and told.reasons == ()
    assert "a thread per task; perceptron 3-8-5-2, relu" in told.regime
    step = 25 * (3 * 2 * 10 * (24 + 40 + 10) - 2 * 10 * 24)
    back = 25 * 2 * 10 * (10 + (6 * 74 - 3 * 24))  # w0 only, activations and the lower derivatives kept
    assert told.flops == 5 * (step + back)
    big = pb.MLP(torch.zeros(1000, 50), torch.zeros(1000, 2), sizes=(50, 60, 2))
    assert (
        "all threads" in pb.explain(pb.unroll, big, pb.MLP.init((50, 60, 2)), steps=2, optimizer=SGD).regime
    )


def test_memory_stays_in_its_budget():
    """Measured, both ways: the trajectory, the scratch and nothing that grows with T."""
    x, y = data(8, n=10)
    w0 = [tuple(leaf.requires_grad_() for leaf in pair) for pair in pb.MLP.init(SIZES, dtype=torch.float64)]
    leaves = pytree.tree_leaves(w0)
    for steps in (50, 400):
        given = {"steps": steps, "optimizer": pb.SGD(0.01), "memory": "256KiB"}
        assert pb.explain(pb.unroll, of(x, y), w0, **given).peak_memory <= 256 << 10

        def both_ways(given=given):
            w = pb.unroll(of(x, y), w0, **given)
            torch.autograd.grad(sum(leaf.sum() for leaf in pytree.tree_leaves(w)), leaves)

        with Meter() as meter:
            both_ways()
        assert meter.peak < (256 << 10) + (64 << 10)  # results and views beside


def test_generic_and_fused_agree():
    case = MlpCase(activation="sigmoid", objective="state")
    found, generic = solve(case), solve(case, backend="generic")
    assert_all_match(found.values, generic.values)
    assert_all_match(found.gradients, generic.gradients)
