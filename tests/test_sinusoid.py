"""MAML on sinusoids: what the recipe draws, and that it learns weights which a few steps adapt."""

import math
from dataclasses import replace

import pytest
import torch

import pybilevel as pb
from pybilevel.experiments import sinusoid
from pybilevel.experiments.sinusoid import Settings


def test_tasks_are_those_of_the_paper():
    episode = sinusoid.draw(Settings(shots=200), torch.Generator().manual_seed(0), tasks=500)
    assert episode.x.shape == (500, 200, 1) and episode.y_val.shape == (500, 10, 1)
    assert episode.x.min() >= -5 and episode.x.max() <= 5
    assert 4.9 < episode.y.abs().max() <= 5
    # a sine of unknown amplitude and phase is a combination of sin and cos
    basis = torch.cat([episode.x.sin(), episode.x.cos()], -1).double()
    found = torch.linalg.lstsq(basis, episode.y.double())
    assert (basis @ found.solution - episode.y).abs().max() < 1e-4
    amplitude, phase = found.solution.norm(dim=1), torch.atan2(-found.solution[:, 1], found.solution[:, 0])
    assert amplitude.min() >= 0.1 - 1e-5 and phase.min() >= -1e-3 and phase.max() <= math.pi + 1e-3


@pytest.mark.usefixtures("one_thread")
def test_learning_lowers_the_loss_after_adaptation():
    """One step of adaptation goes far below what it reaches from random weights, and more steps help."""
    settings = Settings(iterations=400, meta_lr=3e-3)
    generator = torch.Generator().manual_seed(settings.seed)
    random = sinusoid.evaluate(pb.MLP.init(settings.sizes, generator=generator), settings, tasks=200)
    curve = []
    learnt = sinusoid.evaluate(
        sinusoid.train(settings, lambda _, loss: curve.append(loss)), settings, tasks=200
    )
    assert len(curve) == 400 and sum(curve[-50:]) < sum(curve[:50])
    assert learnt[1] < 0.75 * random[1] and learnt[10] < learnt[1] < learnt[0]
    assert learnt[10] < 0.6 * random[10]


def test_the_gradient_is_that_of_the_generic_engine():
    settings = replace(Settings(), steps=3)
    generator = torch.Generator().manual_seed(0)
    episode, w0 = sinusoid.draw(settings, generator), pb.MLP.init(settings.sizes, generator=generator)
    leaves = [leaf.requires_grad_() for pair in w0 for leaf in pair]
    loss = sinusoid.adapted_loss(w0, episode, settings).mean()
    inner = pb.MLP(episode.x, episode.y, sizes=settings.sizes)
    w = pb.unroll(inner, w0, steps=3, optimizer=pb.SGD(settings.lr), backend="generic")
    plain = 0.5 * (inner.logits(w, episode.x_val) - episode.y_val).square().sum() / (25 * 10)
    torch.testing.assert_close(loss, plain)
    for found, expected in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves), strict=True
    ):
        torch.testing.assert_close(found, expected)
