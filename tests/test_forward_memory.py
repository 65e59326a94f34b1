"""The memory of forward mode: constant in T, within the budget, and what `explain` forecasts."""

import pytest
import torch
import torch.nn.functional as F
from custom_functions import NoVmap
from forward_cases import assert_same, forward
from generic_laws import STEPS, leaf, network, network_case
from meter import Meter
from networks import FORECAST, NETS
from torch.utils import _pytree as pytree

import pybilevel as pb

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {"momentum": lambda lr: pb.SGD(lr, momentum=0.9), "adam": pb.Adam}


def peak_of(leaves, *args, **options):
    """The most bytes at once, both ways."""
    with Meter() as meter:
        w = forward(*args, **options)
        torch.autograd.grad(sum(x.sum() for x in pytree.tree_leaves(w)), leaves)
    return meter.peak


def forecast_of(*args, **options):
    options = {"steps": STEPS, "optimizer": pb.SGD(0.1, 0.5)} | options
    return pb.explain(pb.unroll, *args, method=pb.Forward(), **options)


def assert_forecast(leaves, *args, **options):
    """The measured peak, which the forecast must not be below by more than rounding up to single numbers."""
    forecast, peak = forecast_of(*args, **options).peak_memory, peak_of(leaves, *args, **options)
    assert peak <= forecast <= (1 + FORECAST) * peak, f"{forecast / peak:.3f} of the measured {peak} bytes"
    return peak


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("many", [1, 12])
@pytest.mark.parametrize("name", ["conv", "conv and norm", "dropout"])
def test_the_forecast_for_a_network(name, many, optimizer):
    """Few hyperparameters and many: a step size, or as many penalties, of which each meets one part of every leaf."""
    make, shape = NETS[name]
    module = pb.ModuleLoss(make(), lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    w0 = pytree.tree_map(torch.Tensor.detach, module.parameters())
    lr, penalties = torch.tensor(0.01), torch.full((many,), 0.1)
    wanted = (penalties if many > 1 else lr).requires_grad_()

    def inner(w, h, batch):
        penalty = sum(
            (part.square().sum() * h[: len(part)].sum() for x in w.values() for part in x.chunk(many)),
        )
        return module(w, batch) + penalty

    batches = torch.randn(3, *shape), torch.randint(10, (3, shape[0]))
    options = {"steps": 3, "optimizer": OPTIMIZERS[optimizer](lr), "batches": batches, "memory": "1GiB"}
    assert forecast_of(inner, w0, penalties, **options).tangents == many
    assert_forecast([wanted], inner, w0, penalties, **options)


def test_memory_is_constant_in_the_number_of_steps():
    w0, h = torch.randn(20_000), torch.rand(3, requires_grad=True)

    def inner(w, h):
        return (h[0] * w.cos() + h[1] * w.sin() + h[2] * w.square()).sum()

    peaks = [assert_forecast([h], inner, w0, h, steps=steps, memory=80 * w0.nbytes) for steps in (5, 50)]
    assert peaks[0] == peaks[1] <= 80 * w0.nbytes
    assert assert_forecast([h], inner, w0, h, steps=1) < peaks[0]  # the first iterate is the caller's
    explained = forecast_of(inner, w0, h)
    assert explained.slots == 0 and explained.flops > 0 and "tangents     3" in str(explained)


@pytest.mark.parametrize("optimizer", [pb.SGD, pb.Adam])
def test_a_budget_cuts_the_tangents_into_chunks_with_the_same_result(optimizer):
    w0, hparams, inputs = network_case()
    lr = leaf(low=0.05)
    args, inputs = (network, w0, hparams), inputs | {"lr": lr}
    options = {"optimizer": optimizer(lr), "steps": 2}
    most = forecast_of(*args, **options, memory="1MiB")
    with pytest.raises(ValueError, match=r"P = 75 tangents.*needs .* \(\d+ bytes\)") as caught:
        forward(*args, **options, memory=1000)
    least = int(str(caught.value).rpartition(" (")[2].split()[0])
    whole = forward(*args, **options)
    chunks = []
    for budget in (least, (3 * least + most.peak_memory) // 4, most.peak_memory):
        explained = forecast_of(*args, **options, memory=budget)
        chunks.append(int(explained.regime.rpartition("tangents ")[2].split()[0]))
        assert explained.peak_memory <= budget
        assert_forecast(list(inputs.values()), *args, **options, memory=budget)
        assert_same(forward(*args, **options, memory=budget), whole, inputs)
    assert chunks[0] == 1 < chunks[1] < 60 < chunks[2] == explained.tangents == 75
    for call in (forward, forecast_of):
        with pytest.raises(ValueError, match=f"needs .* \\({least} bytes\\)"):
            call(*args, **options, memory=least - 1)


@pytest.mark.parametrize("kept", [0, 3])
def test_the_forecast_where_tangents_go_one_by_one(kept):
    """Their number then decides how many tensors are made: many small results beside one large graph, or the other way
    round."""
    w0, h = torch.randn(2_000), torch.rand(12, requires_grad=True)

    def inner(w, h):
        large = torch.cat([w.cos()] * 30 * kept).square().mean() if kept else 0
        return (NoVmap.apply(w) * h.repeat(200)[:2000]).sum() + large

    with pytest.warns(UserWarning, match="one by one"):
        budget = forecast_of(inner, w0, h).peak_memory
        # a budget so near is measured, which finds out; else the run itself does, and its attempt counts too
        assert_forecast([h], inner, w0, h, memory=budget)


def test_the_forecast_for_tasks_that_share_tangents():
    x, l2 = torch.randn(6, 30, 20, requires_grad=True), torch.rand(6, requires_grad=True)
    lr = torch.tensor(0.1, requires_grad=True)
    inner = pb.SoftmaxRegression(x, torch.arange(30).expand(6, 30) % 5, l2=l2)
    for memory in ("1GiB", "5MiB"):
        assert_forecast([x, l2, lr], inner, None, optimizer=pb.SGD(lr, 0.9), memory=memory)


def test_seeds_of_initial_parameters_keep_the_budget():
    """They fill the tangents at once; a second copy would be as large as these."""
    w0 = torch.randn(700, requires_grad=True)
    options = {"optimizer": pb.SGD(0.1), "memory": int(1.5 * 700 * w0.nbytes)}
    assert_forecast([w0], lambda w: w.cos().sum(), w0, **options)
