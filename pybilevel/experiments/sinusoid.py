"""MAML on sinusoids (Finn, Abbeel, Levine, ICML 2017, section 5.1): initial weights that a few steps fit to a sine.

A task is y = a sin(x - p) with a in [0.1, 5], p in [0, pi] and `shots` points of [-5, 5]. All weights of a 1-40-40-1
relu network are adapted by gradient descent on them; the outer objective is the error on `queries` further points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pybilevel as pb

Parameters = list[tuple[Tensor, Tensor]]


class Episode(NamedTuple):
    """Points of a batch of tasks: to adapt to [B, shots, 1], and to judge by [B, queries, 1]."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor


@dataclass(frozen=True)
class Settings:
    """Of a run; the inner loss is half the squared error, so that an inner `lr` of 0.02 is the paper's 0.01.

    Attributes:
        iterations: of the outer optimizer, Adam with step size `meta_lr`.
        tasks: in a batch.
        shots, queries: points a task.
        steps, lr: of the adaptation in training.
        sizes: widths of the network.
        seed: of tasks and initial weights.
    """

    iterations: int = 2000
    tasks: int = 25
    shots: int = 10
    queries: int = 10
    steps: int = 1
    lr: float = 0.02
    meta_lr: float = 1e-3
    sizes: tuple[int, ...] = (1, 40, 40, 1)
    seed: int = 0


def draw(settings: Settings, generator: torch.Generator, tasks: int | None = None) -> Episode:
    """Random tasks, `settings.tasks` of them unless the argument says otherwise."""
    count = settings.tasks if tasks is None else tasks

    def uniform(points: int, low: float, high: float) -> Tensor:
        return torch.rand(count, points, 1, generator=generator) * (high - low) + low

    amplitude, phase = uniform(1, 0.1, 5.0), uniform(1, 0.0, math.pi)
    x, x_val = uniform(settings.shots, -5.0, 5.0), uniform(settings.queries, -5.0, 5.0)
    return Episode(x, amplitude * torch.sin(x - phase), x_val, amplitude * torch.sin(x_val - phase))


def adapted_loss(w0: Any, episode: Episode, settings: Settings, steps: int | None = None) -> Tensor:
    """Half the squared error [B] on the query points after adaptation from w0, differentiable in w0."""
    inner = pb.MLP(episode.x, episode.y, sizes=settings.sizes)
    outer = pb.MLP(episode.x_val, episode.y_val, sizes=settings.sizes)
    optimizer = pb.SGD(settings.lr)
    return pb.ho_objective(
        inner, outer, w0, steps=settings.steps if steps is None else steps, optimizer=optimizer
    )


def train(settings: Settings, watch: Callable[[int, float], None] | None = None) -> Parameters:
    """Initial weights learnt by MAML; `watch` is told the iteration and its loss.

    Cost: an unroll forward and back an iteration.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    w0 = pb.MLP.init(settings.sizes, generator=generator)
    leaves = [leaf.requires_grad_() for pair in w0 for leaf in pair]
    adam = torch.optim.Adam(leaves, lr=settings.meta_lr)
    for iteration in range(settings.iterations):
        loss = adapted_loss(w0, draw(settings, generator), settings).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        if watch is not None:
            watch(iteration, loss.item())
    return [(weight.detach(), bias.detach()) for weight, bias in w0]


def evaluate(
    w0: Parameters, settings: Settings, steps: int = 10, tasks: int = 600, seed: int = 1
) -> list[float]:
    """The mean squared error on new tasks after 0, 1, ..., `steps` steps of adaptation."""
    episode = draw(settings, torch.Generator().manual_seed(seed), tasks)
    with torch.no_grad():
        losses = [adapted_loss(w0, episode, settings, t) for t in range(steps + 1)]
    return [2.0 * loss.mean().item() for loss in losses]
