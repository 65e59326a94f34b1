"""How much faster the fused objective is than plain PyTorch, on this machine, at the sizes of this run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import pybilevel as pb
from pybilevel.experiments.plain import Objective, plain_objective

REPEATS = 25
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Ratio:
    """Median milliseconds of objective and gradients; `ratio` is plain over fused."""

    fused_ms: float
    plain_ms: float
    ratio: float
    shape: str
    largest_difference: float

    def __str__(self) -> str:
        return f"{self.ratio:.1f} x (fused {self.fused_ms:.3f} ms, plain PyTorch {self.plain_ms:.3f} ms; {self.shape})"


def fused_objective(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, lr: Tensor, steps: int, ways: int
) -> tuple[Tensor, Tensor]:
    """`pybilevel.ml_objective` with the arguments of `plain_objective`."""
    loss, logits = pb.ml_objective(
        support, support_y, query, query_y, steps=steps, optimizer=pb.SGD(lr), num_classes=ways
    )
    return loss, logits


def measure_ratio(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, *, lr: float, steps: int, ways: int
) -> Ratio:
    """Time forward and backward of both objectives on the given features, in turns, after checking that they agree.

    Backward goes to the features of the support [B, n, d], of the queries [B, m, d], and to the step size. They are
    compared in float64, because in float32 the gradient to the step size, a sum that may cancel, can differ by 1e-3
    from rounding alone, in either of them; they are timed in the dtype of the features, with one thread and
    with all, and each counts with what suits it best (on a busy machine more threads can be much slower).
    Errors: RuntimeError where losses or gradients differ by more than 1e-8 of their largest entry.
    """

    def once(objective: Objective, leaves: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        loss, _ = objective(leaves[0], support_y, leaves[1], query_y, leaves[2], steps, ways)
        return (loss.detach(), *torch.autograd.grad(loss.mean(), leaves))

    step = torch.tensor(lr, device=support.device, dtype=support.dtype)
    exact = _leaves(support.double(), query.double(), step.double())
    pairs = zip(once(fused_objective, exact), once(plain_objective, exact), strict=True)
    difference = max(_difference(a, b) for a, b in pairs)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the fused and the plain objective differ by {difference:.1e} of their largest entry."
        )
    leaves = _leaves(support, query, step)
    runs = (partial(once, fused_objective, leaves), partial(once, plain_objective, leaves))
    threads = torch.get_num_threads()
    medians = [_medians(runs, count, support.device) for count in {1, threads}]
    torch.set_num_threads(threads)
    fused, plain = (1e3 * min(times) for times in zip(*medians, strict=True))
    b, n, d = support.shape
    shape = f"B={b} n={n} m={query.shape[1]} d={d} c={ways} T={steps}"
    return Ratio(fused, plain, plain / fused, shape, difference)


def _leaves(support: Tensor, query: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return support.detach().requires_grad_(), query.detach().requires_grad_(), step.detach().requires_grad_()


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _medians(runs: Sequence[Callable[[], object]], threads: int, device: torch.device) -> list[float]:
    """Median seconds of each run, measured in turns."""
    torch.set_num_threads(threads)
    times = [[_seconds(run, device) for run in runs] for _ in range(REPEATS)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
