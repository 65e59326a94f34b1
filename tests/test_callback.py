"""Callbacks: told every step once, and every cotangent; a run that they stop is the run with as many steps."""

import weakref

import numpy as np
import pytest
import torch
from callback_cases import PLANS, norm, plain, unrolled
from generic_laws import STEPS, assert_same_run, gradients, leaf, network, network_case
from tolerance import assert_matches
from torch.utils import _pytree as pytree

import pybilevel as pb


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_every_step_is_told_once_whatever_is_recomputed(memory):
    case, seen = network_case(), []
    w = unrolled(case, memory=memory, callback=seen.append)
    for _ in range(2):
        gradients(w, case[2])
    assert [step.step for step in seen] == list(range(1, STEPS + 1))
    ws = list(plain(case))
    for step, before, after in zip(seen, ws, ws[1:], strict=False):
        loss = network(before, case[1])
        slopes = torch.autograd.grad(loss, pytree.tree_leaves(before), retain_graph=True)
        assert_matches(step.loss, loss)
        assert_matches(step.gradient_norm, norm(slopes))
        for a, b in zip(pytree.tree_leaves(step.gradient), slopes, strict=True):
            assert_matches(a, b)
        for a, b in zip(pytree.tree_leaves(step.w), pytree.tree_leaves(after), strict=True):
            assert_matches(a, b)
            assert not a.requires_grad


def test_without_gradients_it_is_told_too():
    seen = []
    with torch.no_grad():
        unrolled(network_case(), callback=seen.append)
    assert [step.step for step in seen] == list(range(1, STEPS + 1))


def test_no_step_is_nothing_to_tell():
    recorder = pb.Recorder()
    w = unrolled(network_case(), steps=0, callback=recorder)
    pytree.tree_leaves(w)[0].sum().backward()
    assert recorder.losses == {} and list(recorder.cotangent_norms) == [0]


def test_a_fused_problem_goes_to_the_generic_engine_and_says_why():
    problem = pb.SoftmaxRegression(torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 0, 1]))
    options = {"steps": 3, "optimizer": pb.SGD(0.1)}
    recorder = pb.Recorder()
    w = pb.unroll(problem, callback=recorder, **options)
    assert_matches(w, pb.unroll(problem, backend="fused", **options))
    assert recorder.losses[0] == pytest.approx(float(problem(torch.zeros(4, 3).double())))
    with pytest.raises(pb.BackendError, match="a callback is given"):
        pb.unroll(problem, callback=recorder, backend="fused", **options)
    assert "a callback is given" in str(pb.explain(pb.unroll, problem, callback=recorder, **options))


def test_an_objective_takes_one_too():
    recorder, case = pb.Recorder(), network_case()
    w0, hparams, _ = case
    E = pb.ho_objective(
        network,
        lambda w: w["out"].square().sum(),
        w0,
        hparams,
        steps=3,
        optimizer=pb.SGD(0.1),
        callback=recorder,
    )
    E.backward()
    assert len(recorder.losses) == 3 and len(recorder.cotangent_norms) == 4


# ------------------------------------------------------------------------------------------------ stopping


def stop_at(step):
    return lambda seen: seen.step == step


@pytest.mark.parametrize("ran", [1, 2, 4, STEPS])
@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_a_stopped_run_is_the_run_with_as_many_steps(memory, ran):
    case = network_case()
    whole = unrolled(case, steps=ran, return_state=True)
    early = unrolled(case, steps=STEPS, return_state=True, memory=memory, callback=stop_at(ran))
    assert early[1].step == whole[1].step == ran
    assert_same_run(early, whole, case[2])


@pytest.mark.parametrize("memory", PLANS[:3], ids=str)
@pytest.mark.parametrize("ran", [2, 4, 6])
def test_a_stopped_run_that_is_truncated(memory, ran):
    case = network_case()
    options = {"method": pb.Reverse(truncate=3), "memory": memory}
    expected = gradients(unrolled(case, steps=ran, **options), case[2])
    found = gradients(unrolled(case, callback=stop_at(ran), **options), case[2])
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("ran", [1, 4, STEPS])
def test_a_stopped_run_in_forward_mode(ran):
    case, lr = network_case(), leaf(STEPS, low=0.1)
    inputs = {**case[2], "lr": lr}
    recorder = pb.Recorder(stop=stop_at(ran))
    w, state = unrolled(case, lr=lr, method=pb.Forward(), callback=recorder, return_state=True)
    whole = unrolled(case, lr=lr[:ran], steps=ran)
    assert state.step == len(recorder.losses) == ran
    expected, found = gradients(whole, inputs), gradients(w, inputs)
    for name in inputs:
        assert_matches(found[name], expected[name], name)
    reverse = pb.Recorder()
    unrolled(case, lr=lr[:ran], steps=ran, callback=reverse)
    assert recorder.losses == pytest.approx(reverse.losses)
    assert recorder.gradient_norms == pytest.approx(reverse.gradient_norms)


def test_steps_that_did_not_run_have_zero_gradients_of_their_settings_and_batches():
    w0, lr, batches = leaf(3), leaf(9, low=0.1), leaf(9, 3)
    w = pb.unroll(
        lambda w, batch: ((w - batch) ** 2).cos().sum(),
        w0,
        steps=9,
        batches=batches,
        optimizer=pb.SGD(lr),
        callback=stop_at(5),
    )
    for gradient in torch.autograd.grad(w.sum(), [lr, batches]):
        assert gradient[:5].abs().amin() > 0 and not gradient[5:].any()


def test_draws_of_a_stopped_run_are_those_of_the_run_with_as_many_steps():
    """Dropout: the same masks, and the generator where a plain loop of so many steps leaves it."""
    w0, h, found = leaf(6), leaf(6), []

    def loss(w, h):
        return (torch.nn.functional.dropout(w * h, 0.5).cos() * w).sum()

    for options in ({"steps": 3}, {"steps": 8, "callback": stop_at(3), "memory": pb.Revolve(2)}):
        torch.manual_seed(5)
        w = pb.unroll(loss, w0, h, optimizer=pb.SGD(0.1), **options)
        found.append([w, torch.rand(2), *torch.autograd.grad(w.sum(), [w0, h])])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_callback_may_draw():
    """Its draws are its own: they differ from step to step, and the loss's are not touched."""
    w0, drawn = leaf(6), []
    pb.unroll(
        lambda w: w.cos().sum(),
        w0,
        steps=4,
        optimizer=pb.SGD(0.1),
        callback=lambda step: drawn.append(float(torch.rand(()))),
    )
    assert len(set(drawn)) == 4

    def loss(w):
        return torch.nn.functional.dropout(w, 0.5).cos().sum()

    found = []
    for callback in (None, lambda step: drawn.append(float(torch.rand(())))):
        torch.manual_seed(1)
        found.append(pb.unroll(loss, w0, steps=4, optimizer=pb.SGD(0.1), callback=callback))
    assert torch.equal(*found) and len(set(drawn)) == 8


def test_going_on_after_a_stop():
    case = network_case()
    _, state = unrolled(case, return_state=True, callback=stop_at(3))
    w = unrolled((None, *case[1:]), steps=2, state=state)
    whole = unrolled(case, steps=5)
    for a, b in zip(*map(pytree.tree_leaves, (w, whole)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "memory, least, most", [(pb.Revolve(1), 2, 3), (pb.Revolve(3), 3, 5), (pb.StoreAll(), 36, 36)]
)
def test_a_stopped_run_holds_no_more_states_than_its_slots(memory, least, most):
    """Counted on the living parameters of all steps that were told: the slots, and those of the step at work."""
    alive, peak = set(), 0

    def count(step):
        nonlocal peak
        alive.add(step.step)
        weakref.finalize(step.w.untyped_storage(), alive.discard, step.step)
        peak = max(peak, len(alive))
        return step.step == 36

    w0 = leaf(5)
    w = pb.unroll(lambda w: w.cos().sum(), w0, steps=40, optimizer=pb.SGD(0.1), memory=memory, callback=count)
    w.sum().backward()
    assert least <= peak <= most


@pytest.mark.parametrize(
    "answer",
    [True, np.bool_(True), torch.tensor(True), lambda step: step.gradient_norm < 1e9],
    ids=["bool", "numpy", "tensor", "comparison"],
)
def test_what_stops(answer):
    seen = []
    unrolled(network_case(), callback=lambda s: seen.append(s) or (answer(s) if callable(answer) else answer))
    assert len(seen) == 1


@pytest.mark.parametrize("answer", [1, "stop", torch.tensor(1.0)], ids=str)
def test_what_is_no_answer(answer):
    with pytest.raises(TypeError, match=r"callback returned .*: return True to stop after this step"):
        unrolled(network_case(), callback=lambda step: answer)


def test_what_a_callback_raises_comes_through():
    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unrolled(network_case(), callback=interrupt)
