"""The sinusoid workload: MAML of a perceptron 1-40-40-1 (Finn, Abbeel, Levine 2017, section 5.1).

Every task is a sine of amplitude 0.1 to 5 and phase 0 to pi, given by n points of [-5, 5]; all weights are adapted by T
steps from shared initial ones, whose hypergradients are those of the mean squared error on m further points.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.workloads import Bilevel, Inputs, Shape, Work, Workload

HIDDEN = (40, 40)
LEAVES = tuple(f"{kind}{layer}" for layer in range(1, len(HIDDEN) + 2) for kind in ("W", "b"))


def sizes(shape: Shape) -> tuple[int, ...]:
    """Widths from inputs to outputs."""
    return (shape.d, *HIDDEN, shape.c)


def sinusoid_inputs(shape: Shape) -> dict[str, Tensor]:
    """The tasks, and initial parameters as those of torch.nn.Linear."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*size: int, low: float, high: float) -> Tensor:
        return torch.rand(*size, generator=generator) * (high - low) + low

    amplitude = uniform(shape.tasks, 1, shape.c, low=0.1, high=5.0)
    phase = uniform(shape.tasks, 1, shape.c, low=0.0, high=math.pi)
    found = {"lr": torch.tensor(0.01)}
    for name, rows in (("", shape.n), ("_val", shape.m)):
        x = uniform(shape.tasks, rows, shape.d, low=-5.0, high=5.0)
        found |= {f"x{name}": x, f"y{name}": amplitude * torch.sin(x.sum(-1, keepdim=True) - phase)}
    for layer, (i, o) in enumerate(pairwise(sizes(shape)), start=1):
        found[f"W{layer}"] = uniform(i, o, low=-(i**-0.5), high=i**-0.5)
        found[f"b{layer}"] = uniform(o, low=-(i**-0.5), high=i**-0.5)
    return found


def sinusoid_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["x"], a["y"], a["x_val"], a["y_val"], a["lr"], w0=tuple(a[name] for name in LEAVES))


def sinusoid_work(shape: Shape) -> Work:
    """A step: 6 n W operations forward, and 12 n W back, less what would go to the inputs.

    W weights. Back, activations and the gradient by them kept: the R-operator, tangents, their cotangents, those of W.
    The query loss and its gradient: 6 m W. Traffic: the data, and the weights both ways.
    """
    pairs = list(pairwise(sizes(shape)))
    weights, first = sum(i * o for i, o in pairs), pairs[0][0] * pairs[0][1]
    step = 2 * shape.n * (3 * weights - first + 6 * weights - 3 * first)
    query = 2 * shape.m * (3 * weights - first)
    traffic = 4 * (shape.tasks * (shape.n + shape.m) * (shape.d + shape.c) + 2 * weights)
    return Work(float(shape.tasks * (shape.steps * step + query)), float(traffic), "primal")


SINUSOID = Workload("sinusoid", "squared", LEAVES, sinusoid_inputs, sinusoid_problem, sinusoid_work)
