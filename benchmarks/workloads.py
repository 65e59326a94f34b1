"""What each workload is: its inputs, its leaves, its bilevel problem, and the work nobody can avoid.

All of them differentiate through T steps of gradient descent on a linear model with bias, from zero weights:

    few-shot        softmax, B tasks; hypergradients of the support features, the query features and the step size
    hyper-cleaning  softmax, one problem; hypergradients of the n example weights and of l2
    effect of T     squared loss on the features H x; hypergradient of the matrix H

A workload is written once, with operators that torch tensors and JAX arrays share, so every contender gets
literally the same problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Any]  # name -> array of the contender's library


@dataclass(frozen=True)
class Shape:
    """Sizes of one case; `tasks` = 0 is one problem without a task dimension."""

    n: int  # training rows a task
    m: int  # validation (query) rows a task
    d: int  # features
    c: int  # outputs
    steps: int
    tasks: int = 0

    def __str__(self) -> str:
        sizes = {"B": self.tasks, "n": self.n, "m": self.m, "d": self.d, "c": self.c, "T": self.steps}
        return " ".join(f"{key}={size}" for key, size in sizes.items() if size)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Bilevel(NamedTuple):
    """The problem itself: train on (x, y, weights, l2) with step size lr, then the mean loss on (x_val, y_val)."""

    x: Any  # [*B, n, d]
    y: Any  # [*B, n] classes, or [*B, n, c] targets
    x_val: Any  # [*B, m, d]
    y_val: Any  # [*B, m] or [*B, m, c]
    lr: Any  # ()
    weights: Any = None  # [*B, n]
    l2: Any = 0.0  # ()


class Work(NamedTuple):
    """The arithmetic and the traffic of the cheapest algorithm known: what the limits are computed from."""

    flops: float
    bytes: float
    coordinates: str  # "primal" or "dual", whichever needs less arithmetic


@dataclass(frozen=True)
class Workload:
    """One kind of case. `leaves` are the inputs whose hypergradients every contender returns."""

    name: str
    loss: str  # "softmax" | "squared"
    leaves: tuple[str, ...]
    inputs: Callable[[Shape], dict[str, Tensor]]
    problem: Callable[[Inputs], Bilevel]
    work: Callable[[Shape], Work]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labels(x: Tensor, classes: int, seed: int) -> Tensor:
    """Labels of a random linear teacher, so that training does something: [*B, n] int64."""
    return (x @ _normal(x.shape[-1], classes, seed=seed)).argmax(-1)


def few_shot_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian features of about unit norm, as a normalising encoder gives; step size 1.0 is stable for them."""
    support = _normal(shape.tasks, shape.n, shape.d, seed=0) / shape.d**0.5
    query = _normal(shape.tasks, shape.m, shape.d, seed=1) / shape.d**0.5
    return {
        "support": support,
        "support_y": torch.arange(shape.n).remainder(shape.c).expand(shape.tasks, -1).contiguous(),
        "query": query,
        "query_y": torch.arange(shape.m).remainder(shape.c).expand(shape.tasks, -1).contiguous(),
        "lr": torch.tensor(1.0),
    }


def few_shot_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["support"], a["support_y"], a["query"], a["query_y"], a["lr"])


def hyper_cleaning_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian images of a linear teacher, half of the training labels replaced at random, weights in (0, 1)."""
    x, x_val = _normal(shape.n, shape.d, seed=0), _normal(shape.m, shape.d, seed=1)
    y = _labels(x, shape.c, seed=2)
    noise = _normal(shape.n, shape.c, seed=3).argmax(-1)
    return {
        "x": x,
        "y": torch.where(torch.arange(shape.n) % 2 == 0, y, noise),
        "x_val": x_val,
        "y_val": _labels(x_val, shape.c, seed=2),
        "weights": _normal(shape.n, seed=4).sigmoid(),
        "l2": torch.tensor(1e-3),
        "lr": torch.tensor(0.1),
    }


def hyper_cleaning_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["x"], a["y"], a["x_val"], a["y_val"], a["lr"], a["weights"], a["l2"])


def effect_of_t_inputs(shape: Shape) -> dict[str, Tensor]:
    """Gaussian features, one-hot targets, H near the identity; the step size is about 1/L for these features."""
    x, x_val = _normal(shape.n, shape.d, seed=0), _normal(shape.m, shape.d, seed=1)
    eye = torch.eye(shape.c)
    return {
        "x": x,
        "y": eye[_labels(x, shape.c, seed=2)],
        "x_val": x_val,
        "y_val": eye[_labels(x_val, shape.c, seed=2)],
        "H": torch.eye(shape.d) + 0.1 * _normal(shape.d, shape.d, seed=3) / shape.d**0.5,
        "lr": torch.tensor(0.2),
    }


def effect_of_t_problem(a: Inputs) -> Bilevel:
    return Bilevel(a["x"] @ a["H"].T, a["y"], a["x_val"] @ a["H"].T, a["y_val"], a["lr"])


# The arithmetic below counts multiply-adds as 2, ignores the bias row and everything that is O(n c) a step, and
# assumes that nothing is recomputed. The traffic is compulsory traffic: inputs read once, gradients written once.


def few_shot_work(shape: Shape) -> Work:
    """Unroll, query loss and reverse, feature gradients included (DESIGN section 5).

    primal  4 n d c a step forward, 4 back, 4 for X_bar; dual  2 n^2 c a step forward, 2 back, 2 for K_bar, plus
    the Gram matrix (2 n^2 d), X_bar from K_bar (2 n^2 d) and three products with A_T (6 n d c). Query: 6 m d c.
    """
    b, n, m, d, c, t = max(shape.tasks, 1), shape.n, shape.m, shape.d, shape.c, shape.steps
    primal = 12 * n * d * c * t
    dual = 6 * n * n * c * t + 4 * n * n * d + 6 * n * d * c
    traffic = b * (2 * 4 * (n + m) * d + 8 * (n + m))  # float32 features both ways, int64 labels once
    return _cheaper(b, primal, dual, 6 * m * d * c, traffic)


def hyper_cleaning_work(shape: Shape) -> Work:
    """No feature gradients: primal 8 n d c a step, dual 4 n^2 c a step plus Gram matrix and end points."""
    n, m, d, c, t = shape.n, shape.m, shape.d, shape.c, shape.steps
    primal = 8 * n * d * c * t
    dual = 4 * n * n * c * t + 2 * n * n * d + 4 * n * d * c
    traffic = 4 * (n + m) * d + 8 * (n + m) + 2 * 4 * n
    return _cheaper(1, primal, dual, 4 * m * d * c, traffic)


def effect_of_t_work(shape: Shape) -> Work:
    """As few-shot with one task, plus the features H x and the gradient of H (2 d^2 a row each)."""
    inner = few_shot_work(shape)
    rows, d, c = shape.n + shape.m, shape.d, shape.c
    return Work(
        inner.flops + 4 * rows * d * d,
        4 * (rows * (d + c) + 2 * d * d),
        inner.coordinates,
    )


def _cheaper(tasks: int, primal: int, dual: int, ends: int, traffic: int) -> Work:
    coordinates = "dual" if dual < primal else "primal"
    return Work(float(tasks * (min(primal, dual) + ends)), float(traffic), coordinates)


FEW_SHOT = Workload(
    "few-shot", "softmax", ("support", "query", "lr"), few_shot_inputs, few_shot_problem, few_shot_work
)
HYPER_CLEANING = Workload(
    "hyper-cleaning",
    "softmax",
    ("weights", "l2"),
    hyper_cleaning_inputs,
    hyper_cleaning_problem,
    hyper_cleaning_work,
)
EFFECT_OF_T = Workload(
    "effect of T", "squared", ("H",), effect_of_t_inputs, effect_of_t_problem, effect_of_t_work
)
