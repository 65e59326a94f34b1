"""Kept graphs: where they fit nothing runs twice, and the results are those of every other way to spend memory."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import assert_same_run, gradients, leaf, network, network_case
from meter import Meter
from torch import nn

import pybilevel as pb

STEPS = 6
KEPT = "the graph of every step is kept"


def optimizers():
    momentum = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return {
        "sgd": pb.SGD(leaf(STEPS, low=0.05), momentum, weight_decay=leaf(low=0.1)),
        "adam": pb.Adam(leaf(low=0.05), eps=1e-3),
    }


def explained(inner, *args, **options):
    return pb.explain(pb.unroll, inner, *args, **options)


def assert_same_bits(inner, w0, hparams, inputs, **options):
    """Bitwise: the kept graphs give what stored states give, in a second backward and for one input alone too."""
    options = {"steps": STEPS} | options
    assert KEPT in explained(inner, w0, hparams, **options).schedule
    results = []
    for memory in ("auto", pb.StoreAll()):
        torch.manual_seed(1)
        results.append(pb.unroll(inner, w0, hparams, memory=memory, return_state=True, **options))
    assert_same_run(*results, inputs)
    (w, _), (stored, _) = results
    expected = gradients(stored, inputs)
    for name, x in inputs.items():
        assert torch.equal(gradients(w, {name: x})[name], expected[name]), name


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_network(name):
    w0, hparams, inputs = network_case()
    optimizer = optimizers()[name]
    settings = {k: v for k, v in optimizer.settings().items() if isinstance(v, torch.Tensor)}
    assert_same_bits(network, w0, hparams, inputs | settings, optimizer=optimizer)


def test_batches_dropout_and_carried_buffers():
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2)
    ).double()
    inner = pb.ModuleLoss(
        net, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), buffers="carry"
    )
    w0 = inner.parameters()
    batches = leaf(STEPS, 8, 4), torch.randint(2, (STEPS, 8))
    inputs = {**w0, "x": batches[0]}
    assert_same_bits(inner, w0, None, inputs, batches=batches, optimizer=pb.SGD(0.1))


def test_tasks():
    w0, h = leaf(3), leaf(4, 3)
    inputs = {"w0": w0, "h": h}

    def loss(w, h):
        return ((w - h) ** 2).cos().sum()

    assert_same_bits(loss, w0, h, inputs, optimizer=pb.SGD(0.1), in_dims=(None, 0))


@pytest.mark.parametrize("ran", [1, 4])
def test_stopping_and_recording(ran):
    case, found = network_case(), []
    for memory in ("auto", pb.StoreAll()):
        recorder = pb.Recorder(stop=lambda step: step.step == ran)
        w, state = pb.unroll(
            network,
            *case[:2],
            steps=STEPS,
            optimizer=pb.SGD(0.1),
            memory=memory,
            callback=recorder,
            return_state=True,
        )
        assert state.step == ran
        slopes = gradients(w, case[2])
        found.append((slopes, recorder.losses, recorder.gradient_norms, recorder.cotangent_norms))
    (a, *curves), (b, *others) = found
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert curves == others and len(curves[0]) == ran and len(curves[2]) == ran + 1


def test_nothing_runs_twice():
    """The loss is called once a step, and a few times to look at it first and before the backward."""
    calls, w0 = [], leaf(3)

    def loss(w):
        calls.append(1)
        return w.cos().sum()

    counts = []
    for memory in ("auto", pb.StoreAll()):
        calls.clear()
        pb.unroll(loss, w0, steps=50, optimizer=pb.SGD(0.1), memory=memory).sum().backward()
        counts.append(len(calls))
    assert counts[0] <= 50 + 6 and counts[1] >= 100


@pytest.mark.parametrize(
    "options", [{"method": pb.Reverse(truncate=3)}, {"memory": pb.Revolve(2)}, {"steps": 2}]
)
def test_where_graphs_are_not_kept(options):
    options = {"steps": STEPS, "optimizer": pb.SGD(0.1)} | options
    assert KEPT not in explained(lambda w: w.cos().sum(), leaf(3), **options).schedule


def test_two_formulas_of_a_gradient_would_make_results_depend_on_memory():
    """torch has another formula for the gradient of silu where that has a graph of its own: no graphs are kept."""
    w0 = torch.linspace(-3, 3, 101).requires_grad_()

    def loss(w):
        return F.silu(w).sum()

    options = {"steps": STEPS, "optimizer": pb.SGD(0.1)}
    assert KEPT not in explained(loss, w0, **options).schedule
    found = [pb.unroll(loss, w0, memory=memory, **options) for memory in ("auto", pb.StoreAll())]
    assert torch.equal(*found)


@pytest.mark.parametrize("steps", [6, 40])
def test_memory_is_forecast_and_a_budget_decides(steps):
    """A budget that all graphs fit in is kept; a smaller one is met with stored states."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    inner = pb.ModuleLoss(net, lambda model: F.cross_entropy(model(x), y))
    w0, options = inner.parameters(), {"steps": steps, "optimizer": pb.SGD(0.1, momentum=0.9)}
    peaks = {}
    for memory in (1 << 26, 1 << 21):
        explanation = explained(inner, w0, memory=memory, **options)
        with Meter() as meter:
            w = pb.unroll(inner, w0, memory=memory, **options)
            torch.autograd.grad(sum(v.sum() for v in w.values()), list(w0.values()))
        peaks[memory] = meter.peak
        assert meter.peak <= memory
        assert (KEPT in explanation.schedule) == (memory > 1 << 21)
        if memory > 1 << 21:
            assert abs(explanation.peak_memory - meter.peak) <= 0.15 * meter.peak
    assert peaks[1 << 26] > peaks[1 << 21]
