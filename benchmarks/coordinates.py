"""The figures beside pybilevel/engine/select.py: `python -m benchmarks.coordinates`, about a minute.

*Rounding*: the largest relative error, in the 2-norm, of the hypergradients of x, y, the example weights and l2 in
float32, for every kind of coordinates, against the generic engine in float64, on Gaussian features.

*Effect of T*: the same of that case of the benchmark, whose hypergradient of H is a sum that cancels.

*Lanes*: one call of many tiny tasks on one thread, a task per SIMD lane against a pack of rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import pybilevel as pb
from benchmarks.cases import CASES
from benchmarks.measure import reference_results, relative_errors
from benchmarks.peers import ours
from benchmarks.workloads import EFFECT_OF_T, Shape
from pybilevel.engine import recipe
from pybilevel.engine.cost import COORDINATES

LAYOUT = "pybilevel.engine.layout"


class Sizes(NamedTuple):
    """One problem of the rounding table."""

    problem: type[pb.LeastSquares] | type[pb.SoftmaxRegression]
    n: int
    d: int
    c: int
    steps: int
    momentum: float = 0.0


ROUNDING = (
    Sizes(pb.LeastSquares, 100, 64, 5, 16),
    Sizes(pb.LeastSquares, 100, 64, 5, 64),
    Sizes(pb.LeastSquares, 128, 256, 20, 256),
    Sizes(pb.LeastSquares, 300, 256, 20, 256),
    Sizes(pb.LeastSquares, 300, 256, 20, 1024),
    Sizes(pb.LeastSquares, 1000, 64, 5, 256),
    Sizes(pb.LeastSquares, 1000, 64, 5, 4096),
    Sizes(pb.LeastSquares, 1000, 64, 5, 1024, 0.9),
    Sizes(pb.SoftmaxRegression, 100, 64, 5, 64),
    Sizes(pb.SoftmaxRegression, 100, 64, 5, 64, 0.9),
)
LANES = ((5, 5), (16, 5), (25, 5), (32, 5), (20, 20))


def rounding(table: Sequence[Sizes] = ROUNDING) -> str:
    """A Markdown table: a row for each problem, a column for each kind of coordinates."""
    rows = [f"| problem | {' | '.join(COORDINATES)} |", "| --- | --- | --- | --- |"]
    for sizes in table:
        found = errors(sizes)
        name = f"{sizes.problem.__name__} n={sizes.n} d={sizes.d} T={sizes.steps} momentum={sizes.momentum:g}"
        cells = [f"{found[one]:.1e}" if one in found else "" for one in COORDINATES]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def errors(sizes: Sizes) -> dict[str, float]:
    """The largest relative error of a hypergradient in float32, in the coordinates that are for the problem."""
    exact = _hypergradients(sizes, torch.float64, "generic")
    fit = [one for one in COORDINATES if one != "normal" or sizes.problem is pb.LeastSquares]
    return {
        one: max(relative_errors(_hypergradients(sizes, torch.float32, one), exact).values()) for one in fit
    }


def _hypergradients(sizes: Sizes, dtype: torch.dtype, coordinates: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, teacher = normal(sizes.n, sizes.d), normal(sizes.d, sizes.c)
    y = x @ teacher + normal(sizes.n, sizes.c)
    x_val, y_val = normal(50, sizes.d), normal(50, sizes.c)
    if sizes.problem is pb.SoftmaxRegression:
        y, y_val = y.softmax(-1), y_val.softmax(-1)
    weights = normal(sizes.n).sigmoid()
    curvature = torch.linalg.eigvalsh(x.T @ x / sizes.n)[-1]
    given = {"x": x, "y": y, "weights": weights, "l2": torch.tensor(1e-3)}
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in given.items()}
    inner = sizes.problem(leaves["x"], leaves["y"], weights=leaves["weights"], l2=leaves["l2"])
    outer = sizes.problem(x_val.to(dtype), y_val.to(dtype))
    rule = pb.SGD(float(0.9 / curvature), sizes.momentum)
    with _forced(coordinates):
        backend = "generic" if coordinates == "generic" else "fused"
        value = pb.ho_objective(inner, outer, steps=sizes.steps, optimizer=rule, backend=backend)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


@contextmanager
def _forced(coordinates: str) -> Iterator[None]:
    """Within it fused problems run in these coordinates, those of an earlier call forgotten."""
    with mock.patch(f"{LAYOUT}.choose_coordinates", lambda *_: coordinates):
        recipe.forget()
        yield
    recipe.forget()


def effect_of_t(shape: Shape) -> str:
    """A Markdown table: the relative error of the hypergradient of H in float32, in every kind of coordinates."""
    inputs = EFFECT_OF_T.inputs(shape)
    exact, allowed = reference_results(EFFECT_OF_T, shape, inputs)
    rows = [
        f"| {EFFECT_OF_T.name}, {allowed:.1e} allowed | {' | '.join(COORDINATES)} |",
        "| --- | --- | --- | --- |",
    ]
    errors = []
    for coordinates in COORDINATES:
        with _forced(coordinates):
            found = ours.build(EFFECT_OF_T, shape, inputs)()
        errors.append(f"{max(relative_errors(found, exact).values()):.1e}")
    return "\n".join([*rows, f"| {shape} | {' | '.join(errors)} |"])


def lanes(table: Sequence[tuple[int, int]] = LANES, tasks: int = 128, repeats: int = 30) -> str:
    """A Markdown table: milliseconds of 20 steps on `tasks` tasks of n examples and c classes, d = 64, both halves."""
    rows = ["| n | c | a pack of rows | a task per lane |", "| --- | --- | --- | --- |"]
    for n, c in table:
        times = [1e3 * _seconds(n, c, tasks, regime, repeats) for regime in ("tasks", "lanes")]
        rows.append(f"| {n} | {c} | {times[0]:.2f} | {times[1]:.2f} |")
    return "\n".join(rows)


def _seconds(n: int, c: int, tasks: int, regime: str, repeats: int) -> float:
    """The fastest of `repeats` calls."""
    x = torch.randn(tasks, n, 64).div_(8).requires_grad_()
    y = torch.arange(n).remainder(c).expand(tasks, -1)
    best = float("inf")
    with ExitStack() as stack:
        stack.enter_context(_forced("dual"))
        stack.enter_context(mock.patch(f"{LAYOUT}.choose_regime", lambda *_: regime))
        for _ in range(repeats):
            start = time.perf_counter()
            inner = pb.SoftmaxRegression(x, y, num_classes=c)
            w = pb.unroll(inner, steps=20, optimizer=pb.SGD(1.0), backend="fused")
            w.backward(torch.ones_like(w))
            best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.workload is EFFECT_OF_T)
    print(rounding(), effect_of_t(case.shape), lanes(), sep="\n\n")
