"""Kept graphs: where they fit nothing runs twice, and the results are those of every other way to spend memory."""

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Square
from generic_laws import assert_same_run, gradients, leaf, network, network_case
from meter import Meter
from torch import nn

import pybilevel as pb
from pybilevel.engine import graphs
from pybilevel.engine.formulas import SAME
from pybilevel.ops import graph_leaves, plain_graph

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


@pytest.mark.parametrize("form", ["stacked", "listed"])
def test_learnable_batches(form):
    w0, h = {"w": leaf(4, 2)}, leaf(low=0.1)
    x, y, plain = leaf(STEPS, 3, 4), leaf(STEPS, 3, 2), torch.rand(STEPS, 3, 1).double()
    parts = [(a, b, c) for a, b, c in zip(x, y, plain, strict=True)]

    def loss(w, h, batch):
        features, target, weights = batch
        return (weights * (features @ w["w"] - target).cos()).sum() + h * w["w"].square().sum()

    batches = (x, y, plain) if form == "stacked" else parts
    inputs = {"w0": w0["w"], "h": h, "x": x, "y": y}
    assert_same_bits(loss, w0, h, inputs, batches=batches, optimizer=pb.Adam(leaf(low=0.05), eps=1e-3))


@pytest.mark.parametrize("wanted", ["all", "rates"])
def test_a_value_a_parameter(wanted):
    """Steps in torch operations: constant and per step, with buffers that depend on them."""
    w0 = {"a": leaf(4, 3), "b": leaf(3)}
    h = leaf(5, 4)
    rates = {"a": leaf(STEPS, 4, 3, low=0.05), "b": leaf(low=0.05)}
    decay = {"a": leaf(4, 3, low=0.1), "b": 0.1}

    def loss(w, h):
        return (h @ w["a"] + w["b"]).tanh().square().sum()

    solver = pb.SGD(rates, momentum=0.7, weight_decay=decay)
    inputs = {"rates": rates["a"], "rate": rates["b"], "decay": decay["a"]}
    if wanted == "all":
        inputs |= {"a": w0["a"], "b": w0["b"], "h": h}
    else:
        w0, h = {name: x.detach() for name, x in w0.items()}, h.detach()
    assert_same_bits(loss, w0, h, inputs, optimizer=solver)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_tasks_of_a_network(name):
    w0 = {"a": leaf(4, 3), "b": leaf(3)}
    h, momentum = leaf(2, 5, 4), torch.tensor([[0.5], [0.7]], dtype=torch.float64, requires_grad=True)
    rates = leaf(2, STEPS, low=0.05)
    solver = pb.SGD(rates, momentum) if name == "sgd" else pb.Adam(rates, eps=1e-3)

    def loss(w, h):
        return (h @ w["a"] + w["b"]).tanh().square().sum()

    inputs = {**w0, "h": h, "rates": rates} | ({"momentum": momentum} if name == "sgd" else {})
    assert_same_bits(loss, w0, h, inputs, optimizer=solver, in_dims=(None, 0))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(steps):
    w0, hparams, inputs = network_case()
    assert_same_bits(network, w0, hparams, inputs, optimizer=pb.SGD(0.1, momentum=0.9), steps=steps)


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


def test_nothing_runs_twice(monkeypatch):
    """The loss is called once a step, the first look at it included."""
    calls, rooms, w0, room = [], [], leaf(3), graphs.room
    monkeypatch.setattr(graphs, "room", lambda *args: rooms.append(room(*args)) or rooms[-1])

    def loss(w):
        calls.append(1)
        return w.cos().sum()

    def count(memory):
        calls.clear()
        pb.unroll(loss, w0, steps=50, optimizer=pb.SGD(0.1), memory=memory).sum().backward()
        return len(calls)

    assert count("auto") == 50 and count(pb.StoreAll()) >= 100
    # where the estimate cannot tell, the graph of a step is measured as it is made
    assert count(10_000) == 50
    assert rooms[0].most is None and rooms[-1].most > 0


@pytest.mark.parametrize(
    "options", [{"method": pb.Reverse(truncate=3)}, {"memory": pb.Revolve(2)}, {"steps": 0}]
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
    for memory in (1 << 26, 570_000):
        explanation = explained(inner, w0, memory=memory, **options)
        with Meter() as meter:
            w = pb.unroll(inner, w0, memory=memory, **options)
            torch.autograd.grad(sum(v.sum() for v in w.values()), list(w0.values()))
        peaks[memory] = meter.peak
        assert meter.peak <= memory
        assert (KEPT in explanation.schedule) == (memory > 570_000)
        if memory > 570_000:
            assert abs(explanation.peak_memory - meter.peak) <= 0.15 * meter.peak
    assert peaks[1 << 26] > peaks[570_000]


def test_graphs_are_kept_in_as_much_memory_as_the_plain_loop_takes():
    torch.manual_seed(0)
    net, l2 = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)), leaf(low=0.1).float()
    x, y, w0 = torch.randn(32, 64), torch.randint(10, (32,)), dict(net.named_parameters())
    w0, steps = {name: p.detach() for name, p in w0.items()}, 12

    def loss(w):
        nll = F.cross_entropy(torch.func.functional_call(net, w, (x,)), y)
        return nll + l2 * sum(p.square().sum() for p in w.values())

    def plain():
        w = w0
        for _ in range(steps):
            w = {name: p.detach().requires_grad_() if w is w0 else p for name, p in w.items()}
            slopes = torch.autograd.grad(loss(w), list(w.values()), create_graph=True)
            w = {name: p - 0.1 * g for (name, p), g in zip(w.items(), slopes, strict=True)}
        return w

    def ours(memory):
        return pb.unroll(loss, w0, steps=steps, optimizer=pb.SGD(0.1), memory=memory)

    peaks = []
    for run in (plain, lambda: ours("1GiB")):
        with Meter() as meter:
            torch.autograd.grad(sum(p.sum() for p in run().values()), l2)
        peaks.append(meter.peak)
    one = sum(p.nbytes for p in w0.values())
    assert peaks[1] <= peaks[0] + 3 * one  # no gradient a step
    budget = peaks[0] + 8 * one
    assert KEPT in explained(loss, w0, steps=steps, optimizer=pb.SGD(0.1), memory=budget).schedule


A, B, V = torch.randn(5, 7), torch.randn(5, 7), torch.randn(7)
OPERATIONS = {
    "Abs": lambda x: x.abs(),
    "Add": lambda x: x + A,
    "Addmm": lambda x: torch.addmm(V[:5], x, B.T),
    "Bmm": lambda x: torch.bmm(x[None], B.T[None]),
    "Cat": lambda x: torch.cat((x, x.cos())),
    "Clone": lambda x: x.clone(),
    "Convolution": lambda x: F.conv1d(x[None], A[:, :, None].expand(5, 7, 3)[:, :5]),
    "Cos": lambda x: x.cos(),
    "Div": lambda x: A / x + x / B,
    "Dot": lambda x: torch.dot(x[0], V),
    "Exp": lambda x: x.exp(),
    "Expand": lambda x: x[None].expand(3, 5, 7),
    "Gelu": lambda x: F.gelu(x),
    "Log": lambda x: x.abs().log(),
    "LogSoftmax": lambda x: x.log_softmax(1),
    "Mean": lambda x: x.mean(),
    "Mean1": lambda x: x.mean(1),
    "Mm": lambda x: x @ B.T,
    "Mul": lambda x: x * x.cos() * A,
    "Mv": lambda x: x @ V,
    "Neg": lambda x: -x,
    "NllLoss": lambda x: F.cross_entropy(x, torch.arange(5)),
    "Permute": lambda x: x.permute(1, 0),
    "Pow": lambda x: x**3,
    "Relu": lambda x: x.relu(),
    "Rsub1": lambda x: 2 - x,
    "Select": lambda x: x[1],
    "Sigmoid": lambda x: x.sigmoid(),
    "Sin": lambda x: x.sin(),
    "Slice": lambda x: x[1:3],
    "Softmax": lambda x: x.softmax(0),
    "Split": lambda x: torch.cat(x.split(2)[1:]),
    "Sqrt": lambda x: x.abs().sqrt(),
    "Squeeze": lambda x: x[None].squeeze(),
    "Squeeze1": lambda x: x[None].squeeze(0),
    "Stack": lambda x: torch.stack((x, x.cos())),
    "Sub": lambda x: A - x,
    "Sum": lambda x: x.sum(),
    "Sum1": lambda x: x.sum(0),
    "T": lambda x: F.linear(A, x),
    "Tanh": lambda x: x.tanh(),
    "Transpose": lambda x: x.transpose(0, 1),
    "Unbind": lambda x: x.unbind()[1],
    "UnsafeView": lambda x: (x[None].expand(2, 5, 7).transpose(0, 1) @ B.T).cos(),
    "Unsqueeze": lambda x: x[None],
    "View": lambda x: x.flatten(),
}


def test_an_example_for_every_operation_of_one_formula():
    assert {f"{name.rstrip('1')}Backward{int(name[-1] == '1')}" for name in OPERATIONS} == SAME


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_of_one_formula_have_the_same_bits_with_a_graph_of_their_gradient(
    name, dtype, monkeypatch
):
    for constant in ("A", "B", "V"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to(dtype))
    x = torch.randn(5, 7, dtype=dtype, requires_grad=True)
    value = (OPERATIONS[name](x).sin() * torch.rand(())).sum()
    _, kinds = graph_leaves(value, [x])
    assert f"{name.rstrip('1')}Backward{int(name[-1] == '1')}" in kinds
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    (kept,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(plain, kept)


def test_leaves_and_kinds_of_a_graph():
    x, own, other = leaf(3), leaf(3), leaf(3)
    inner = x.exp()
    foreign, kinds = graph_leaves((Square.apply(inner * own) + other.detach()).sum(), [inner])
    assert [id(t) for t in foreign] == [id(own)]
    assert sorted(kinds) == ["AddBackward0", "MulBackward0", "SumBackward0", "custom"]
    assert graph_leaves(torch.ones(()), []) == ([], [])


def test_a_plain_graph_has_no_leaf_but_ones_own_and_no_custom_function():
    x, own = leaf(3), leaf(3)
    inner = x.exp()
    assert plain_graph((inner * own).cos().sum(), [inner, own]) and plain_graph(torch.ones(()), [])
    assert not plain_graph((inner * own).sum(), [inner]) and not plain_graph((inner * own).sum(), [own])
    assert not plain_graph(Square.apply(own).sum(), [own])
