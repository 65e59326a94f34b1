"""The recorder: curves of a run, forward and back."""

import pytest
import torch
from callback_cases import PLANS, norm, plain, unrolled
from generic_laws import STEPS, leaf, network, network_case
from torch.utils import _pytree as pytree

import pybilevel as pb


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_recorded_curves_are_those_of_the_plain_loop(memory):
    case, recorder = network_case(), pb.Recorder()
    w = unrolled(case, memory=memory, callback=recorder)
    assert recorder.cotangent_norms == {}
    sum(x.sin().sum() for x in pytree.tree_leaves(w)).backward()
    ws = list(plain(case))
    outer = sum(x.sin().sum() for x in pytree.tree_leaves(ws[-1]))
    for t, point in enumerate(ws):
        leaves = pytree.tree_leaves(point)
        cotangents = torch.autograd.grad(outer, leaves, retain_graph=True)
        assert recorder.cotangent_norms[t] == pytest.approx(float(norm(cotangents)), rel=1e-9)
        if t < STEPS:
            loss = network(point, case[1])
            slopes = torch.autograd.grad(loss, leaves, retain_graph=True)
            assert recorder.losses[t] == pytest.approx(loss.item(), rel=1e-9)
            assert recorder.gradient_norms[t] == pytest.approx(float(norm(slopes)), rel=1e-9)
    assert len(recorder.losses) == len(recorder.gradient_norms) == STEPS
    assert len(recorder.cotangent_norms) == STEPS + 1


def test_a_truncated_backward_reaches_fewer():
    recorder = pb.Recorder()
    w = unrolled(network_case(), method=pb.Reverse(truncate=2), callback=recorder)
    w["out"].sum().backward()
    assert list(recorder.cotangent_norms) == [STEPS - 2, STEPS - 1, STEPS]


def test_a_recorder_goes_on_with_a_state_and_starts_anew_without():
    case, recorder = network_case(), pb.Recorder()
    _, state = unrolled(case, steps=3, callback=recorder, return_state=True)
    w = unrolled((None, *case[1:]), steps=2, state=state, callback=recorder)
    w["out"].sum().backward()
    assert list(recorder.losses) == list(range(5)) and list(recorder.cotangent_norms) == list(range(6))
    unrolled(case, steps=2, callback=recorder)
    assert list(recorder.losses) == [0, 1] and recorder.cotangent_norms == {}


def test_a_recorder_can_stop():
    recorder = pb.Recorder(stop=lambda step: step.loss < 1e-2)
    target = torch.randn(4).double()
    _, state = pb.unroll(
        lambda w: (w - target).square().sum(),
        leaf(4),
        steps=1000,
        optimizer=pb.SGD(0.1),
        callback=recorder,
        return_state=True,
    )
    losses = list(recorder.losses.values())
    assert state.step == len(losses) < 100
    assert losses[-1] < 1e-2 <= losses[-2]
