"""The figures of docs/methods.md: `python -m benchmarks.methods`, about a minute.

One problem, every mode, the generic engine: softmax regression as a callable, whose examples are in groups with a
weight each, and the hypergradient of a validation loss in those weights and the l2 penalty, P numbers. Time is that of
the processor, the best of three; memory is the peak of what torch operations hold, 200 KiB of it the data; errors are
relative to the derivative of the T steps, and to that of the solution (5,000 steps), both in float64.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pybilevel as pb
from benchmarks.meter import Meter

CASES = ((20, 16), (200, 1), (200, 16), (200, 256))
"""T and the number of groups; P is one more."""
METHODS: dict[str, dict[str, Any]] = {
    "Reverse": {"method": pb.Reverse()},
    "Reverse, StoreAll": {"method": pb.Reverse(), "memory": pb.StoreAll()},
    "Reverse, Revolve(5)": {"method": pb.Reverse(), "memory": pb.Revolve(5)},
    "Reverse, last 10 steps": {"method": pb.Reverse(truncate=10)},
    "Reverse, first order": {"method": pb.Reverse(first_order=True)},
    "Forward": {"method": pb.Forward()},
    "Implicit, cg": {"method": pb.Implicit("cg", tol=1e-5)},
    "Implicit, fixed point": {"method": pb.Implicit("fixed_point", tol=1e-5, max_iter=200)},
}


@dataclass(frozen=True)
class Example:
    """Softmax regression of n examples in groups; everything that a method may be asked for."""

    groups: int
    n: int = 500
    d: int = 50
    c: int = 5
    dtype: torch.dtype = torch.float32

    def run(self, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
        """The hypergradients in the log weights and in the log penalty."""
        generator = torch.Generator().manual_seed(0)
        x, v = (
            torch.randn(self.n, self.d, generator=generator, dtype=torch.float32).to(self.dtype)
            for _ in range(2)
        )
        truth = torch.randn(self.d, self.c, generator=generator, dtype=torch.float32).to(self.dtype)
        noise = 3 * torch.randn(self.n, self.c, generator=generator, dtype=torch.float32).to(self.dtype)
        y, u = (x @ truth + noise).argmax(1), (v @ truth).argmax(1)
        group = torch.arange(self.n) % self.groups
        weights = torch.zeros(self.groups, dtype=self.dtype, requires_grad=True)
        penalty = torch.tensor(-3.0, dtype=self.dtype, requires_grad=True)

        def inner(w: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
            losses = torch.nn.functional.cross_entropy(x @ w, y, reduction="none")
            return (h[0].exp()[group] * losses).mean() + 0.5 * h[1].exp() * w.square().sum()

        w0 = torch.zeros(self.d, self.c, dtype=self.dtype)
        w = pb.unroll(inner, w0, (weights, penalty), steps=steps, optimizer=pb.SGD(0.5, 0.9), **options)
        error = torch.nn.functional.cross_entropy(v @ w, u)
        found: tuple[Tensor, Tensor] = torch.autograd.grad(error, (weights, penalty))
        return found


def costs(cases: Sequence[tuple[int, int]] = CASES, **sizes: int) -> str:
    """A Markdown table: milliseconds and KiB of each method, a column for each (T, P)."""
    head = " | ".join(f"T = {steps}, P = {groups + 1}" for steps, groups in cases)
    rows = [f"| ms, KiB | {head} |", "| --- |" + " --- |" * len(cases)]
    for name, options in METHODS.items():
        cells = []
        for steps, groups in cases:
            seconds, peak = _measure(Example(groups, **sizes), steps, options)
            cells.append(f"{1e3 * seconds:.0f}, {peak / 1024:.0f}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def errors(steps: Sequence[int] = (20, 200), groups: int = 16, converged: int = 5000, **sizes: int) -> str:
    """A Markdown table: how far each method is from the derivative of T steps, and from that of the solution."""
    columns = [f"T = {t}: to the {what}" for t in steps for what in ("steps", "solution")]
    rows = [f"| relative error | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    example, precise = Example(groups, **sizes), Example(groups, dtype=torch.float64, **sizes)
    limit = precise.run(converged, method=pb.Implicit("cg", tol=1e-10))
    exact = {t: precise.run(t) for t in steps}
    for name, options in METHODS.items():
        cells = []
        for t in steps:
            found = example.run(t, **options)
            cells += [_error(found, exact[t]), _error(found, limit)]
        rows.append(f"| {name} | " + " | ".join(f"{x:.0e}" for x in cells) + " |")
    return "\n".join(rows)


def _measure(example: Example, steps: int, options: dict[str, Any]) -> tuple[float, int]:
    """Seconds, the best of three, and the peak of bytes."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        example.run(steps, **options)
        seconds.append(time.process_time() - start)
    with Meter() as meter:
        example.run(steps, **options)
    return min(seconds), meter.peak


def _error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    a, b = (torch.cat([x.double().reshape(-1) for x in part]) for part in (found, exact))
    return ((a - b).norm() / b.norm()).item()


def main() -> None:
    torch.set_num_threads(1)
    print(f"1 thread, torch {torch.__version__}\n\n{costs()}\n\n{errors()}")


if __name__ == "__main__":
    main()
