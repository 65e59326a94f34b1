"""How much faster the fused objective is than plain PyTorch, on this machine, at the sizes of this run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import pybilevel as pb
from pybilevel.experiments.plain import Objective, plain_objective

REPEATS = 25
TOLERANCE = 1e-3


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

    Backward goes to the features of the support [B, n, d], of the queries [B, m, d], and to the step size.
    Errors: RuntimeError where losses or gradients differ by more than 1e-3 of their largest entry (float32).
    """
    step = torch.tensor(lr, device=support.device, requires_grad=True)
    leaves = (support.detach().requires_grad_(), query.detach().requires_grad_(), step)

    def once(objective: Objective) -> tuple[Tensor, ...]:
        loss, _ = objective(leaves[0], support_y, leaves[1], query_y, step, steps, ways)
        return (loss.detach(), *torch.autograd.grad(loss.mean(), leaves))

    difference = max(map(_difference, once(fused_objective), once(plain_objective)))
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the fused and the plain objective differ by {difference:.1e} of their largest entry."
        )
    times: dict[Objective, list[float]] = {fused_objective: [], plain_objective: []}
    for _ in range(REPEATS):
        for objective, seconds in times.items():
            seconds.append(_seconds(partial(once, objective), support.device))
    fused, plain = (1e3 * statistics.median(seconds) for seconds in times.values())
    b, n, d = support.shape
    shape = f"B={b} n={n} m={query.shape[1]} d={d} c={ways} T={steps}"
    return Ratio(fused, plain, plain / fused, shape, difference)


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
