"""What `explain` forecasts of the generic engine's memory is what a meter measures; budgets of bytes are kept."""

import pytest
import torch
import torch.nn.functional as F
from meter import Meter
from networks import FORECAST, NETS
from torch.utils import _pytree as pytree

import pybilevel as pb

STEPS = 6
OPTIMIZERS = {"sgd": pb.SGD(0.1), "momentum": pb.SGD(0.1, momentum=0.9), "adam": pb.Adam(0.01)}


def case(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    x, y = torch.randn(STEPS, *shape), torch.randint(10, (STEPS, shape[0]))
    inner = pb.ModuleLoss(make(), lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    return inner, inner.parameters(), {"steps": STEPS, "batches": (x, y)}


def measured(inner, w0, options):
    """The most bytes at once, and the gradients."""
    with Meter() as meter:
        w = pb.unroll(inner, w0, **options)
        found = torch.autograd.grad(sum(x.sum() for x in pytree.tree_leaves(w)), pytree.tree_leaves(w0))
    return meter.peak, found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("memory", [pb.StoreAll(), pb.Revolve(2)], ids=str)
def test_the_forecast_is_what_a_meter_measures(name, optimizer, memory, one_thread):
    inner, w0, options = case(name)
    options |= {"optimizer": OPTIMIZERS[optimizer], "memory": memory}
    forecast = pb.explain(pb.unroll, inner, w0, **options).peak_memory
    peak, _ = measured(inner, w0, options)
    assert abs(forecast - peak) <= FORECAST * peak, f"{forecast / peak:.2f} of the measured {peak} bytes"


@pytest.mark.parametrize("name", ["dense", "conv and norm", "dropout"])
def test_a_budget_is_kept_and_gives_the_same_bits(name, one_thread):
    inner, w0, options = case(name)
    options |= {"optimizer": OPTIMIZERS["adam"]}
    least = pb.explain(pb.unroll, inner, w0, memory=pb.Revolve(1), **options).peak_memory
    most = pb.explain(pb.unroll, inner, w0, memory=pb.StoreAll(), **options).peak_memory
    torch.manual_seed(0)
    _, expected = measured(inner, w0, options | {"memory": pb.StoreAll()})
    for budget in (least, (least + most) // 2, most):
        torch.manual_seed(0)
        peak, found = measured(inner, w0, options | {"memory": budget})
        assert peak <= budget
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="too small for 6 steps"):
        pb.unroll(inner, w0, **options, memory=least - 1)


def test_theta_that_is_wanted_counts(one_thread):
    """Example weights of 4 MB, whose cotangent is summed over the steps."""
    h = torch.ones(1_000_000, requires_grad=True)
    w0 = torch.zeros(10)
    options = {"steps": 3, "optimizer": pb.SGD(0.1), "memory": pb.StoreAll()}

    def loss(w, h):
        return (h[:10] * w).cos().sum()

    forecast = pb.explain(pb.unroll, loss, w0, h, **options).peak_memory
    with Meter() as meter:
        w = pb.unroll(loss, w0, h, **options)
        torch.autograd.grad(w.sum(), h)
    assert abs(forecast - meter.peak) <= FORECAST * meter.peak
    assert forecast >= 2 * h.nbytes  # the sum, and what one step adds
