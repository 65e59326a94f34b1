"""Forward mode that goes on: tangents in the state, the outer optimizer between calls, truncation by detach."""

import io

import pytest
import torch
from generic_laws import gradients, leaf, network, network_case
from optimizer_cases import CASES
from optimizer_settings import settings_of, solver
from tolerance import assert_matches

import pybilevel as pb

A, B = 3, 4


def going_on(inner, w0, hparams, optimizers, between=lambda state: state):
    """w after A and then B steps in forward mode; `between` stands where an outer step would."""
    options = {"method": pb.Forward(), "return_state": True}
    _, state = pb.unroll(inner, w0, hparams, steps=A, optimizer=optimizers[0], **options)
    return pb.unroll(inner, None, hparams, steps=B, optimizer=optimizers[1], state=between(state), **options)


def assert_same(w, exact, inputs):
    expected, actual = gradients(exact, inputs), gradients(w, inputs)
    for name in inputs:
        assert_matches(actual[name], expected[name], name)


@pytest.mark.parametrize("name, variant", CASES)
def test_two_calls_are_one(name, variant):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, "scalar", w0)
    optimizer = solver(name, variant, settings)
    exact = pb.unroll(network, w0, hparams, steps=A + B, optimizer=optimizer)
    w, state = going_on(network, w0, hparams, [optimizer, optimizer])
    assert_same(w, exact, inputs | leaves)
    assert state.step == A + B and state.tangents.count == sum(x.numel() for x in (inputs | leaves).values())


@pytest.mark.parametrize("tasks", [(), (3,)])
def test_two_calls_are_one_on_a_problem(tasks):
    """Also in what is a tensor of another dtype or shape once it is resolved."""
    x, w0 = leaf(*tasks, 5, 4), leaf(*tasks, 5, 3)
    lr, l2 = torch.tensor(0.1, requires_grad=True), leaf(low=0.1)
    inner = pb.SoftmaxRegression(x, torch.arange(5).expand(*tasks, 5) % 3, l2=l2)
    optimizer = pb.SGD(lr, momentum=0.5)
    exact = pb.unroll(inner, w0, steps=A + B, optimizer=optimizer)
    w, state = going_on(inner, w0, None, [optimizer, optimizer])
    inputs = {"x": x, "w0": w0, "l2": l2}
    assert_same(w, exact, inputs)
    assert state.tangents.count == 5 * 4 + 5 * 3 + 1 + 1
    (found,) = torch.autograd.grad(w.sin().sum(), lr, retain_graph=True)
    assert torch.allclose(found, torch.autograd.grad(exact.sin().sum(), lr)[0])


def test_one_rate_a_step_is_another_variable_in_another_call():
    rates, w0 = leaf(2 * A, low=0.1), leaf(4)
    derived = rates.exp() / 10
    for whole in (rates, derived):
        exact = pb.unroll(lambda w: w.cos().sum(), w0, steps=2 * A, optimizer=pb.SGD(whole))
        _, state = pb.unroll(
            lambda w: w.cos().sum(),
            w0,
            steps=A,
            optimizer=pb.SGD(whole[:A]),
            method=pb.Forward(),
            return_state=True,
        )
        w = pb.unroll(
            lambda w: w.cos().sum(),
            steps=A,
            optimizer=pb.SGD(whole[A:]),
            method=pb.Forward(),
            state=state,
        )
        assert_same(w, exact, {"rates": rates, "w0": w0})


def test_a_hyperparameter_that_only_one_call_has():
    w0, first, second = leaf(4), leaf(4), leaf(4)

    def inner(w, h):
        return (w * h).sin().sum()

    optimizer = pb.SGD(0.1, 0.5)
    exact, state = pb.unroll(inner, w0, first, steps=A, optimizer=optimizer, return_state=True)
    exact = pb.unroll(inner, None, second, steps=B, optimizer=optimizer, state=state)
    options = {"optimizer": optimizer, "method": pb.Forward()}
    _, state = pb.unroll(inner, w0, first, steps=A, return_state=True, **options)
    w = pb.unroll(inner, None, second, steps=B, state=state, **options)
    assert_same(w, exact, {"w0": w0, "first": first, "second": second})


@pytest.mark.parametrize("order", ["forward-reverse", "reverse-forward"])
def test_modes_can_take_turns(order):
    w0, h, optimizer = leaf(4), leaf(4), pb.SGD(0.1, 0.5)

    def inner(w):
        return (w * h).sin().sum()

    exact = pb.unroll(inner, w0, steps=A + B, optimizer=optimizer)
    methods = {"forward": pb.Forward(), "reverse": pb.Reverse()}
    first, second = (methods[name] for name in order.split("-"))
    _, state = pb.unroll(inner, w0, steps=A, optimizer=optimizer, method=first, return_state=True)
    w = pb.unroll(inner, steps=B, optimizer=optimizer, method=second, state=state)
    assert_same(w, exact, {"w0": w0, "h": h})


def test_detach_cuts_as_truncation_does():
    w0, h, optimizer = leaf(4), leaf(4), pb.SGD(0.1, 0.5)

    def inner(w, h):
        return (w * h).sin().sum()

    exact = pb.unroll(inner, w0, h, steps=A + B, optimizer=optimizer, method=pb.Reverse(truncate=B))
    w, state = going_on(inner, w0, h, [optimizer, optimizer], lambda state: state.detach())
    assert_same(w, exact, {"h": h})
    assert state.tangents.count == 4  # those of w0 are gone


def test_a_saved_state_goes_on_with_the_inputs_of_the_same_place():
    w0, h, optimizer = leaf(4), leaf(4), pb.SGD(0.1, 0.5)

    def inner(w, h):
        return (w * h).sin().sum()

    def saved(state):
        file = io.BytesIO()
        torch.save(state.state_dict(), file)
        file.seek(0)
        _, other = pb.unroll(inner, w0, h, steps=1, optimizer=optimizer, return_state=True)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert not other.w.requires_grad
        return other

    exact = pb.unroll(inner, w0, h, steps=A + B, optimizer=optimizer)
    w, state = going_on(inner, w0, h, [optimizer, optimizer], saved)
    assert_same(w, exact, {"h": h})
    assert state.tangents.count == 4  # w0 is no input of the second call, so its tangents have no place


def test_an_outer_step_between_calls():
    """Real-time hypergradients: tangents go on although the hyperparameters move, and nothing grows."""
    train, valid = torch.randn(8, 3).double(), torch.randn(8, 3).double()
    truth = torch.randn(3).double()
    log_l2, lr = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.0, 0.05))
    noisy = train @ truth + 2 * torch.randn(8).double()

    def inner(w, h):
        return (train @ w - noisy).square().mean() + h.exp() * w.square().sum()

    def outer(w):
        return (valid @ (w - truth)).square().mean()

    outer_optimizer = torch.optim.SGD([log_l2, lr], lr=1e-3)
    state, w0, errors = None, torch.ones(3).double(), []
    for _ in range(30):
        w, state = pb.unroll(
            inner,
            w0,
            log_l2,
            steps=1,
            optimizer=pb.SGD(lr),
            method=pb.Forward(),
            state=state,
            return_state=True,
        )
        w0 = None
        error = outer(w)
        outer_optimizer.zero_grad()
        error.backward()
        outer_optimizer.step()
        errors.append(error.item())
        assert state.tangents.count == 2
        assert log_l2.grad.abs() > 0 and lr.grad.abs() > 0
    assert errors[-1] < errors[0]


MAPS = {
    "exp": lambda raw: raw.exp(),
    "constraint": pb.constraints.positive,
    "interval": pb.constraints.interval(0.01, 0.3),
    "softplus": pb.constraints.positive_softplus,
    "affine": lambda raw: 0.3 - (0.1 * raw + 0.05).sigmoid() / 4,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(), (4,)], ids=str)
def test_a_map_of_a_leaf_that_is_made_anew_is_the_same_variable(name, shape):
    """As hyperparameter and as rate; and a backward in between, which frees the maps of the call before."""
    w0, first, second = leaf(4), leaf(*shape), leaf()
    make = MAPS[name]

    def inner(w, h):
        return (h * w.cos()).sum()

    def optimizer():
        return pb.SGD(make(second) / 10, 0.5)

    exact = pb.unroll(inner, w0, make(first), steps=A + B, optimizer=optimizer())
    options = {"method": pb.Forward(), "return_state": True}
    w, state = pb.unroll(inner, w0, make(first), steps=A, optimizer=optimizer(), **options)
    torch.autograd.grad(w.sum(), [first, second])
    w, after = pb.unroll(inner, None, make(first), steps=B, optimizer=optimizer(), state=state, **options)
    assert_same(w, exact, {"w0": w0, "first": first, "second": second})
    assert after.tangents.count == state.tangents.count == 4 + first.numel() + 1


@pytest.mark.parametrize(
    "make",
    [lambda h: 2 * h, lambda h: h[:4], lambda h: h.sin(), lambda h: h * torch.arange(4), lambda h: h + h],
)
def test_another_function_of_a_leaf_is_another_variable(make):
    w0, h = leaf(4), leaf(4)

    def inner(w, h):
        return (h * w.cos()).sum()

    other = 3 * h if make(h).grad_fn.name() == "MulBackward0" else make(h)
    exact, state = pb.unroll(inner, w0, make(h), steps=A, optimizer=pb.SGD(0.1), return_state=True)
    exact = pb.unroll(inner, None, other, steps=B, optimizer=pb.SGD(0.1), state=state)
    options = {"optimizer": pb.SGD(0.1), "method": pb.Forward()}
    _, state = pb.unroll(inner, w0, make(h), steps=A, return_state=True, **options)
    w, state = pb.unroll(inner, None, other, steps=B, state=state, return_state=True, **options)
    assert_same(w, exact, {"w0": w0, "h": h})
    assert state.tangents.count == 4 + 4 + 4
