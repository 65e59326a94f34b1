"""What implicit differentiation costs: memory that depends on neither steps nor iterations, and what `explain` says."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import leaf
from meter import Meter
from networks import FORECAST, NETS
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel.engine.solvers import SOLVERS

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_forecast(leaves, *args, **options):
    """The forecast is the measured peak, under an outer objective whose cotangent is as large as w."""
    forecast = pb.explain(pb.unroll, *args, **options).peak_memory
    with Meter() as meter:
        w = pb.unroll(*args, **options)
        torch.autograd.grad(sum(x.square().sum() for x in pytree.tree_leaves(w)), leaves)
    assert abs(forecast - meter.peak) <= FORECAST * meter.peak, f"{forecast / meter.peak:.3f} of {meter.peak}"


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer", [pb.SGD(0.01), pb.Adam(0.01)], ids=lambda one: one.name)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["conv", "dense"])
def test_the_forecast_for_a_network(name, solver, optimizer, steps):
    make, shape = NETS[name]
    x, y, h = torch.randn(shape), torch.randint(10, shape[:1]), torch.ones((), requires_grad=True)
    module = pb.ModuleLoss(make(), lambda model: F.cross_entropy(model(x), y))

    def inner(w, h):
        return module(w) + h * sum(v.square().sum() for v in w.values())

    method = pb.Implicit(solver, max_iter=6, tol=0.0)
    assert_forecast([h], inner, module.parameters(), h, steps=steps, optimizer=optimizer, method=method)


@pytest.mark.parametrize("backend", ["auto", "generic"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_forecast_for_tasks(solver, backend):
    """With a forward half in the fused kernels or without; the mixed derivative of x is the largest tensor."""
    x, l2 = torch.randn(6, 50, 30, requires_grad=True), torch.rand(6, requires_grad=True)
    inner = pb.SoftmaxRegression(x, torch.arange(50).expand(6, 50) % 5, l2=l2)
    options = {"steps": 30, "optimizer": pb.SGD(0.1), "backend": backend}
    assert_forecast([x, l2], inner, **options, method=pb.Implicit(solver, max_iter=8))


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_depends_neither_on_steps_nor_on_iterations(solver):
    h, curvature = torch.rand(20_000).add(0.5).requires_grad_(), torch.linspace(0.5, 1.5, 20_000)

    def inner(w, h):
        return 0.5 * (curvature * w.square()).sum() - (h * w).sum()

    peaks = []
    options = {"optimizer": pb.SGD(0.3, 0.5)}
    for steps, max_iter in ((3, 2), (30, 40)):
        options["method"] = pb.Implicit(solver, max_iter=max_iter, tol=0.0)
        with Meter() as meter:
            w = pb.unroll(inner, torch.zeros(20_000), h, steps=steps, **options)
            torch.autograd.grad(w.square().sum(), h)
        peaks.append(meter.peak)
    assert peaks[1] <= 1.05 * peaks[0]


def test_explain_says_what_it_costs():
    x = leaf(6, 4)
    inner = pb.SoftmaxRegression(x, torch.arange(6) % 3, l2=0.2)
    options = {"steps": 10, "optimizer": pb.SGD(0.5), "method": pb.Implicit("normal_cg", max_iter=7)}
    explained = pb.explain(pb.unroll, inner, **options)
    assert "fused kernels" in explained.regime and "at most 7 iterations of normal_cg" in explained.regime
    assert explained.flops > 14 * 4 * 6 * 4 * 3 and explained.slots == 0
    assert "torch operations" in pb.explain(pb.unroll, inner, backend="generic", **options).regime


def test_a_loss_that_draws_is_an_error_of_explain_too():
    make, shape = NETS["dropout"]
    x = torch.randn(shape)
    inner = pb.ModuleLoss(make(), lambda model: model(x).square().mean())
    options = {"steps": 3, "optimizer": pb.SGD(0.1), "method": pb.Implicit()}
    for call in (pb.unroll, lambda *args, **kwargs: pb.explain(pb.unroll, *args, **kwargs)):
        with pytest.raises(ValueError, match=r"inner draws random numbers.*\.eval\(\)"):
            call(inner, inner.parameters(), **options)
