"""Losses that draw random numbers: the draws are those of the plain loop, and the backward replays them exactly."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, assert_law, generic, gradients, leaf
from tolerance import assert_matches

from pybilevel import explain
from pybilevel.engine.unroll import unroll
from pybilevel.errors import DivergenceError
from pybilevel.optimizers import SGD
from pybilevel.schedules import Revolve, StoreAll

PLANS = [StoreAll(), Revolve(3), Revolve(1), "64KiB"]
X = torch.randn(6, 4).double()


def dropped(w, h):
    return h * F.dropout(torch.tanh(X @ w), 0.4).square().mean() + w.cos().sum()


@pytest.mark.parametrize("memory", PLANS, ids=str)
@pytest.mark.parametrize("truncate", [None, 3])
def test_law_under_dropout(memory, truncate):
    w0, h = leaf(4, 3), leaf(low=0.5)
    inputs = {"w0": w0, "h": h}
    assert_law(dropped, w0, h, inputs=inputs, memory=memory, truncate=truncate, lr=0.3, momentum=0.5)


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2)], ids=str)
def test_generators_of_its_own_are_replayed_too(memory):
    one, two = torch.Generator(), torch.Generator()

    def loss(w, h):
        noise = torch.randn(w.shape, generator=one, dtype=w.dtype)
        mask = torch.rand(w.shape, generator=two) < 0.5
        return (h * (w + noise) * mask).cos().sum() + torch.rand(()) * w.sum()

    w0, h = leaf(4, 3), leaf(4, 3)
    assert_law(
        loss, w0, h, inputs={"w0": w0, "h": h}, memory=memory, generators=(one, two), lr=0.1, momentum=0.5
    )


def test_drawing_batches_by_a_function_is_replayed():
    w0, h, data = leaf(4), leaf(), torch.randn(20, 4).double()

    def batch(t):
        return data[torch.randint(20, (5,))]

    inputs = {"w0": w0, "h": h}
    assert_law(lambda w, h, x: h * (x @ w).cos().sum(), w0, h, inputs=inputs, batches=batch, lr=0.1)


def test_the_same_seed_gives_the_same_run_and_another_another():
    w0, h = leaf(4, 3), leaf(low=0.5)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(generic(dropped, w0, h, lr=0.3))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_backward_twice_and_draws_in_between():
    w0, h = leaf(4, 3), leaf(low=0.5)
    w = generic(dropped, w0, h, lr=0.3, memory=Revolve(2))
    first = gradients(w, {"w0": w0, "h": h})
    torch.rand(5)
    second = gradients(w, {"w0": w0, "h": h})
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("between", [False, True], ids=["uninterrupted", "draws in between"])
def test_state_law(between):
    w0, h = leaf(4, 3), leaf(low=0.5)
    torch.manual_seed(3)
    whole = generic(dropped, w0, h, steps=7, lr=0.3)
    end = torch.get_rng_state()
    torch.manual_seed(3)
    _, state = generic(dropped, w0, h, steps=3, lr=0.3, return_state=True)
    if between:
        torch.rand(4)
    before = torch.get_rng_state()
    w, last = generic(dropped, None, h, steps=4, lr=0.3, state=state, return_state=True)
    assert torch.equal(w, whole) and torch.equal(last.random[0], end)
    # what others drew in between is never repeated
    assert torch.equal(torch.get_rng_state(), before if between else end)
    expected = gradients(whole, {"w0": w0, "h": h})
    for name, actual in gradients(w, {"w0": w0, "h": h}).items():
        assert_matches(actual, expected[name], name)


def test_a_state_saves_its_random_state():
    _, state = generic(dropped, leaf(4, 3), leaf(low=0.5), lr=0.3, return_state=True)
    _, other = generic(dropped, leaf(4, 3), leaf(low=0.5), lr=0.3, return_state=True)
    assert not torch.equal(other.random[0], state.random[0])
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.random[0], state.random[0])


def test_a_state_of_another_loss_is_an_error():
    generator = torch.Generator()
    _, state = generic(
        lambda w: (w * torch.rand(4, generator=generator) + torch.rand(4)).cos().sum(),
        leaf(4),
        lr=0.1,
        return_state=True,
    )
    with pytest.raises(ValueError, match=r"states of 2 random generators but inner draws from 1.*w0=state.w"):
        generic(lambda w: F.dropout(w).cos().sum(), None, lr=0.1, state=state)


# ------------------------------------------------------------------------------------------------ what is noticed


def test_draws_that_begin_at_a_later_step_are_an_error():
    calls = []

    def loss(w):
        calls.append(0)
        return (w * (torch.rand(4) if len(calls) > 3 else 1)).cos().sum()

    with pytest.raises(RuntimeError, match="draws random numbers at a later step"):
        generic(loss, leaf(4), lr=0.1)


def test_other_losses_carry_nothing():
    _, state = generic(lambda w: w.cos().sum(), leaf(4), lr=0.1, return_state=True)
    assert state.random == ()


def test_the_random_state_counts_in_the_budget():
    w0 = leaf(4)
    plain, random = (
        explain(unroll, loss, w0, steps=STEPS, optimizer=SGD(0.1), memory=StoreAll()).peak_memory
        for loss in (lambda w: w.cos().sum(), lambda w: F.dropout(w).cos().sum())
    )
    assert random - plain >= STEPS * torch.get_rng_state().nbytes


def test_explain_draws_nothing():
    w0 = leaf(4)
    before = torch.get_rng_state()
    explain(unroll, lambda w: F.dropout(w).cos().sum(), w0, steps=3, optimizer=SGD(0.1))
    assert torch.equal(torch.get_rng_state(), before)


def test_divergence_names_the_step_of_the_same_draws():
    torch.manual_seed(0)
    factors = torch.rand(STEPS)
    bad = int((factors > 0.7).nonzero()[0])

    def loss(w):
        return w.square().sum() * torch.where(torch.rand(()) > 0.7, float("inf"), 1.0)

    torch.manual_seed(0)
    with pytest.raises(DivergenceError) as caught:
        generic(loss, torch.ones(3, requires_grad=True), lr=0.1)
    assert caught.value.step == bad + 1
