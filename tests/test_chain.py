"""Steps in one graph: the native operator of one, and what a chain of them shares with the first pass."""

import pytest
import torch
from custom_functions import Square
from generic_laws import gradients, leaf

import pybilevel as pb
from pybilevel.engine import chain
from pybilevel.ops import OPTIMIZERS, chain_step, optimizer_step
from pybilevel.ops.optimizers import SETTINGS

STEPS = 5


def arguments(solver):
    """Settings, name and flags of an optimizer as the operators take them."""
    row = OPTIMIZERS[solver.name]
    settings = {k: torch.tensor(v, dtype=torch.float64) for k, v in solver.settings().items()}
    return row.ordered(settings), solver.name, row.bits(solver)


def made(value, state, known, solver, t=0, recorded=True):
    record = torch.zeros(2, SETTINGS, dtype=torch.float64) if recorded else None
    with torch.enable_grad():
        return *chain_step(value, state, known, *arguments(solver), 0, 2, record, t), record


def test_a_step_and_its_pullback_are_those_of_the_gradient_and_the_optimizer():
    solver = pb.SGD(0.3, momentum=0.5)
    w, buffers, x = [leaf(3), leaf(2)], [leaf(3), leaf(2)], leaf(3)
    value = (w[0] * x).cos().sum()  # the second does not enter
    found, plain, record = made(value, [*w, *buffers], [x], solver, t=1)
    g = [*torch.autograd.grad(value, w[0], create_graph=True), torch.zeros_like(w[1])]
    assert plain
    expected = optimizer_step(w, [y.detach() for y in g], buffers, *arguments(solver), 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    bars = [torch.randn_like(y) for y in found]
    by_hand = [0.5 * b + y for b, y in zip(buffers, g, strict=True)]
    by_hand = [*(a - 0.3 * b for a, b in zip(w, by_hand, strict=True)), *by_hand]
    inputs = [*w, *buffers, x]
    ours, theirs = (
        torch.autograd.grad(outputs, inputs, bars, retain_graph=True) for outputs in (found, by_hand)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not record[0].any() and record[1, 0] != 0


@pytest.mark.parametrize(
    "solver", [pb.SGD(0.3, 0.5, True, 0.1), pb.Adam(0.1, eps=1e-3)], ids=lambda x: x.name
)
def test_a_step_whose_settings_ask_for_nothing_has_the_same_pullback(solver):
    kept = {"sgd": 1, "adam": 2}[solver.name]
    w, buffers, x = [leaf(3), leaf(2)], [leaf(n, low=0.1) for n in (3, 2) for _ in range(kept)], leaf(3)
    found = []
    for recorded in (True, False):
        value = (w[0] * x).cos().sum() + w[1].exp().sum()
        after, plain, record = made(value, [*w, *buffers], [x], solver, recorded=recorded)
        assert plain and (record is None) == (not recorded)
        outputs = after[:1] + after[2:]  # a cotangent that is missing is zero
        found.append(torch.autograd.grad(outputs, [*w, *buffers, x], [y.cos() for y in outputs]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_step_is_differentiable_once():
    w = [leaf(3), leaf(3)]
    found, _, _ = made((w[0] * w[1]).cos().sum(), w, [], pb.SGD(0.1))
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(found[0].sum(), w, create_graph=True)


def test_a_step_tells_what_else_enters_the_loss():
    w, x = [leaf(3), leaf(3)], leaf(3)

    def plain(value, *known):
        return made(value, w, known, pb.SGD(0.1))[1]

    assert plain((w[0] * w[1] * x.detach()).sum()) and plain((w[0] * x).sum(), x)
    assert not plain((w[0] * x).sum()) and not plain(Square.apply(w[0]).sum())
    behind = x.exp()
    assert plain((w[0] * behind).sum(), behind) and not plain((w[0] * behind).sum())


def test_a_step_without_parameters_is_an_error():
    with pytest.raises(ValueError, match="state must be w and buffers"):
        chain_step(leaf(), [], [], *arguments(pb.SGD(0.1)), 0, 0, torch.zeros(1, SETTINGS), 0)


def test_what_a_backward_raises_arrives():
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, bar):
            raise KeyError("refused")

    with pytest.raises(KeyError, match="refused"):
        pb.unroll(lambda w: Refusing.apply(w).sum(), leaf(3), steps=STEPS, optimizer=pb.SGD(0.1))


def evaluations(monkeypatch):
    """The steps at which chains evaluate a loss from now on."""
    seen = []

    class Counting(chain.Moment):
        def __init__(self, t, before):
            seen.append(t)
            super().__init__(t, before)

    monkeypatch.setattr(chain, "Moment", Counting)
    return seen


def loss(w, h):
    return (w * h["x"]).cos().sum() + h["l2"] * w.square().sum()


def hparams(x_wanted=True):
    return {"x": leaf(4).detach().requires_grad_(x_wanted), "l2": leaf(low=0.1)}


CAPTURED = leaf(4)
SHARED = {
    "hparams": (loss, hparams(), True),
    "a captured leaf": (lambda w: (w * CAPTURED).cos().sum(), None, True),
    "one of hparams asks for nothing": (loss, hparams(False), False),
    "random numbers": (lambda w: (w.cos() * torch.rand(4)).sum(), None, False),
    "a captured tensor with a graph": (
        (lambda y: lambda w: (w * y).cos().sum())(CAPTURED.exp()),
        None,
        False,
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_the_graph_of_the_first_pass_is_that_of_step_0(name, monkeypatch):
    inner, h, shared = SHARED[name]
    seen, w0 = evaluations(monkeypatch), leaf(4)
    inputs = {"w0": w0, "captured": CAPTURED}
    inputs |= {} if h is None else {k: x for k, x in h.items() if x.requires_grad}
    options = {"steps": STEPS, "optimizer": pb.SGD(leaf(low=0.1), momentum=0.5)}
    torch.manual_seed(0)
    w = pb.unroll(inner, w0, h, **options)
    assert seen == list(range(1 if shared else 0, STEPS))
    torch.manual_seed(0)
    stored = pb.unroll(inner, w0, h, memory=pb.StoreAll(), **options)
    assert torch.equal(w, stored)
    for _ in range(2):  # the second backward runs the steps again
        found, expected = gradients(w, inputs), gradients(stored, inputs)
        assert all(torch.equal(found[k], expected[k]) for k in inputs)


def test_a_first_pass_under_autocast_is_not_shared(monkeypatch):
    seen = evaluations(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        pb.unroll(lambda w: (w @ w.T).cos().sum(), leaf(3, 3).float(), steps=STEPS, optimizer=pb.SGD(0.1))
    assert seen == list(range(STEPS))


@pytest.mark.parametrize("wanted", ["w0", "h", "lr", "rates", "momentum"])
def test_each_input_alone_gets_the_gradient_that_it_gets_with_the_others(wanted):
    w0, h = leaf(4), leaf(4)
    lr, rates = leaf(low=0.1), leaf(STEPS, low=0.1)
    momentum = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    solver = pb.SGD(lr if wanted == "lr" else rates, momentum)
    inputs = {"w0": w0, "h": h, "momentum": momentum} | {"lr": lr, "rates": rates}

    def solve(**given):
        return pb.unroll(lambda w, h: (w * h).cos().sum(), **given, steps=STEPS, optimizer=solver)

    stored = solve(w0=w0, hparams=h, memory=pb.StoreAll())
    x = {wanted: inputs[wanted]}
    assert torch.equal(gradients(solve(w0=w0, hparams=h), x)[wanted], gradients(stored, x)[wanted])
    if wanted not in ("w0", "h"):  # nothing but settings
        alone = solve(w0=w0.detach(), hparams=h.detach())
        assert torch.equal(gradients(alone, x)[wanted], gradients(stored, x)[wanted])


def test_a_loss_may_change_the_containers_that_it_is_given():
    w0, h = {"a": leaf(3), "b": leaf(3)}, {"x": leaf(3), "y": [leaf(3)]}

    def taking(w, h):
        return (w.pop("a") * h.pop("x")).cos().sum() + (w["b"] * h["y"].pop()).cos().sum()

    def reading(w, h):
        return (w["a"] * h["x"]).cos().sum() + (w["b"] * h["y"][0]).cos().sum()

    inputs = {**w0, "x": h["x"], "y": h["y"][0]}
    found, expected = (
        gradients(pb.unroll(inner, w0, h, steps=STEPS, optimizer=pb.SGD(0.1)), inputs)
        for inner in (taking, reading)
    )
    assert all(torch.equal(found[k], expected[k]) for k in inputs)


AROUND = {
    "saved tensors moved": torch.autograd.graph.save_on_cpu,
    "saved tensors cloned": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda x: x),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_may_be_around_a_call(name):
    w0, h = leaf(4), leaf(4)

    def solve():
        w = pb.unroll(lambda w, h: (w * h).cos().sum(), w0, h, steps=STEPS, optimizer=pb.SGD(0.1, 0.5))
        return torch.autograd.grad(w.sin().sum(), [w0, h])

    expected = solve()
    with AROUND[name]():
        found = solve()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
