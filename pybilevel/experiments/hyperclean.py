"""Data hyper-cleaning: find the wrong labels of a training set by learning one weight an example.

    min over lambda of  E(w_T)                              E: mean cross entropy on clean validation data
    w_t: T steps on  L(w) = 1/n sum_i sigmoid(lambda_i) loss(x_i w, y_i) + l2/2 |w|^2,  w_0 = 0

Softmax regression throughout. Source: Franceschi et al. 2017 (Forward and Reverse Gradient-Based Hyperparameter
Optimization), section 5.1; Franceschi et al. 2018.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pybilevel as pb
from pybilevel.data.labelled import NoisyData, noisy_data
from pybilevel.experiments.display import Display, columns
from pybilevel.experiments.record import versions, write_json

L2 = 1e-4
RESULT = "result.json"
# An example is kept if its weight is above this one.
THRESHOLD = 0.5


@dataclass(frozen=True)
class HyperCleanSettings:
    """What decides a hyper-cleaning run; see the command line for the meanings."""

    data: str | None = None
    steps: int = 300
    iterations: int = 100
    noise: float = 0.5
    lr: float = 0.1
    inner_lr: float | None = None
    momentum: float = 0.9
    memory: str = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "iterations", "lr", "inner_lr", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value} must be positive.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum} must be in [0, 1).")


@dataclass(frozen=True)
class Spotting:
    """How well wrong labels were found: those with a weight below one half are called wrong."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Row:
    """A line of the result table: what was trained on, how many examples, test accuracy."""

    name: str
    examples: int
    accuracy: float


@dataclass(frozen=True)
class HyperCleanResult:
    """Table, spotting, and seconds for one outer iteration."""

    rows: list[Row]
    spotting: Spotting
    seconds_per_iteration: float
    curve: list[dict[str, float]]


def run_hyperclean(settings: HyperCleanSettings, folder: Path) -> HyperCleanResult:
    """Clean, compare, print the table, and write `folder/result.json`.

    Errors: DataError for data that cannot be had, DivergenceError where the inner steps are too long.
    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    with Display("hyper-cleaning") as display:
        data = noisy_data(settings.data, noise=settings.noise, seed=settings.seed)
        display.say(f"Data: {data.describe()}.")
        optimizer = pb.SGD(settings.inner_lr or safe_step(data.train_x), momentum=settings.momentum)
        weights, curve = learn_weights(data, settings, optimizer, display)
        rows = compare(data, weights, settings.steps, optimizer)
        result = HyperCleanResult(
            rows, spotting(weights, data.clean), curve[-1]["seconds"] / len(curve), curve
        )
        record = {"experiment": "hyperclean", "data": data.source, "settings": dataclasses.asdict(settings)}
        write_json(folder / RESULT, record | {"versions": versions(), "result": dataclasses.asdict(result)})
        for line in _lines(settings, result, folder):
            display.say(line)
    return result


def learn_weights(
    data: NoisyData, settings: HyperCleanSettings, optimizer: pb.SGD, display: Display
) -> tuple[Tensor, list[dict[str, float]]]:
    """Weights [n] in 0 .. 1 by Adam on their logits, and the curve of validation loss and spotting."""
    logits = torch.zeros(len(data.train_y), requires_grad=True)
    outer = _problem(data.validation_x, data.validation_y, data.classes)
    adam = torch.optim.Adam([logits], lr=settings.lr)
    memory: Any = settings.memory
    curve: list[dict[str, float]] = []
    start = time.perf_counter()
    for iteration in range(1, settings.iterations + 1):
        inner = _problem(data.train_x, data.train_y, data.classes, logits.sigmoid(), L2)
        loss = pb.ho_objective(inner, outer, steps=settings.steps, optimizer=optimizer, memory=memory)
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        found = spotting(logits.detach().sigmoid(), data.clean)
        seconds = time.perf_counter() - start
        curve.append({"iteration": iteration, "seconds": seconds, "loss": loss.item(), "f1": found.f1})
        text = f"validation loss {curve[-1]['loss']:.4f}, F1 {found.f1:.3f}, {iteration / seconds:.1f} it/s"
        display.update(iteration / settings.iterations, text)
    return logits.detach().sigmoid(), curve


def compare(data: NoisyData, weights: Tensor, steps: int, optimizer: pb.SGD) -> list[Row]:
    """Test accuracy of softmax regression trained on different choices of examples.

    As in the source, every choice but the last also trains on the validation examples, which all methods have seen.
    """
    everything = torch.ones_like(data.clean)
    nothing = ~everything
    rows = [
        ("everything (noise included)", everything, True),
        ("cleaned: weights above 1/2", weights > THRESHOLD, True),
        ("clean part only (oracle)", data.clean, True),
        ("validation examples alone", nothing, True),
        ("everything, without validation", everything, False),
    ]
    return [
        Row(
            name,
            int(kept.sum()) + len(data.validation_y) * also,
            _accuracy(data, kept, also, steps, optimizer),
        )
        for name, kept, also in rows
    ]


def spotting(weights: Tensor, clean: Tensor) -> Spotting:
    """F1, precision and recall of "wrong label" as predicted by a weight below one half (0 where undefined)."""
    called, wrong = weights < THRESHOLD, ~clean
    hits = int((called & wrong).sum())
    precision = hits / max(1, int(called.sum()))
    recall = hits / max(1, int(wrong.sum()))
    return Spotting(2 * precision * recall / max(precision + recall, 1e-12), precision, recall)


def safe_step(x: Tensor) -> float:
    """A step size at which gradient descent descends: 1 over the largest curvature of mean softmax regression.

    The curvature is at most half the largest eigenvalue of X^T X / n, with the bias as a feature of ones
    (Boehning 1992).
    """
    ones = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()
    return float(2 / torch.linalg.eigvalsh(ones.T @ ones / len(x))[-1])


def _problem(
    x: Tensor, y: Tensor, classes: int, weights: Tensor | None = None, l2: float = 0.0
) -> pb.SoftmaxRegression:
    return pb.SoftmaxRegression(x, y, num_classes=classes, weights=weights, l2=l2)


def _accuracy(data: NoisyData, kept: Tensor, also: bool, steps: int, optimizer: pb.SGD) -> float:
    """Test accuracy after training on the kept examples, `also` on the validation examples."""
    x, y = [data.train_x[kept]], [data.train_y[kept]]
    if also:
        x, y = [*x, data.validation_x], [*y, data.validation_y]
    problem = _problem(torch.cat(x), torch.cat(y), data.classes, l2=L2)
    with torch.no_grad():
        w = pb.unroll(problem, steps=steps, optimizer=optimizer)
        predicted = problem.logits(w, data.test_x).argmax(-1)
    return float((predicted == data.test_y).float().mean())


def _lines(settings: HyperCleanSettings, result: HyperCleanResult, folder: Path) -> list[str]:
    """The result table and what to try next."""
    width = max(len(row.name) for row in result.rows)
    found = result.spotting
    again = "pybilevel hyperclean" + ("" if settings.data is None else f" --data {settings.data}")
    tips = [
        (f"{again} --steps {5 * settings.steps} --memory 64MiB", "longer, within a memory budget"),
        (f"{again} --noise 0.8", "more wrong labels"),
    ]
    if settings.data is None:
        tips.append((f"{again} --data DIR", "MNIST's files in a folder"))
    return [
        "",
        f"{'trained on':<{width}}  examples  test accuracy",
        *(f"{row.name:<{width}}  {row.examples:>8}  {100 * row.accuracy:>11.2f} %" for row in result.rows),
        "",
        f"Wrong labels spotted: F1 {found.f1:.3f} (precision {found.precision:.3f}, recall {found.recall:.3f})",
        f"One hypergradient through {settings.steps} steps: {1e3 * result.seconds_per_iteration:.0f} ms.",
        f"Written: {folder / RESULT}",
        "",
        "Try next:",
        *(f"  {line}" for line in columns(tips)),
    ]
