"""The figures of docs/spectral.md: `python -m benchmarks.spectral`, about a minute.

*Rounding*: least squares with features of decaying size (condition number of H 10^6), so that most directions are
still moving after T steps; relative errors in the 2-norm of w_T and of hypergradients, against stepping in float64.

*Time*: one hypergradient with respect to the features, by the spectral method and by the other way to log2 T products,
repeated squaring of the matrix I - lr H under autograd:

    q_T(H) b = lr (I + M) (I + M^2) (I + M^4) ... b,    M = I - lr H,  T a power of two
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

import pybilevel as pb

STEPS = (16, 256, 4096, 65536)
NAMES = ("w_T", "x", "weights", "l2", "lr")


def rounding(
    n: int = 60, d: int = 50, c: int = 5, steps: Sequence[int] = STEPS, momentum: float = 0.0
) -> str:
    """A Markdown table: a row for each number of steps and result, a column for each method and dtype."""
    rows = [
        "| T | result | float32 stepping | float32 spectral | float64 spectral |",
        "| --- | --- | --- | --- | --- |",
    ]
    x = torch.randn(n, d, generator=_seed(0)) * torch.logspace(0, -3, d)
    y = torch.randn(n, c, generator=_seed(1))
    bar = torch.randn(d + 1, c, generator=_seed(2))
    for count in steps:
        exact = _solve(x.double(), y.double(), bar.double(), count, momentum, pb.Reverse())
        columns = [
            _solve(x, y, bar, count, momentum, pb.Reverse()),
            _solve(x, y, bar, count, momentum, pb.Spectral()),
            _solve(x.double(), y.double(), bar.double(), count, momentum, pb.Spectral()),
        ]
        for i, name in enumerate(NAMES):
            errors = [_error(column[i], exact[i]) for column in columns]
            rows.append(f"| {count} | {name} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")
    return "\n".join(rows)


def _solve(x: Tensor, y: Tensor, bar: Tensor, steps: int, momentum: float, method: pb.Reverse | pb.Spectral):
    """w_T and the cotangents of x, the weights, l2 and lr."""
    x = x.detach().requires_grad_()
    weights = torch.ones_like(x[:, 0], requires_grad=True)
    l2, lr = (torch.tensor(v, dtype=x.dtype, requires_grad=True) for v in (1e-6, 0.3 * (1 - momentum)))
    inner = pb.LeastSquares(x, y, weights=weights, l2=l2)
    w = pb.unroll(inner, steps=steps, optimizer=pb.SGD(lr, momentum), method=method)
    return [w.detach(), *torch.autograd.grad((w * bar).sum(), (x, weights, l2, lr))]


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def times(n: int = 300, d: int = 256, c: int = 100, steps: Sequence[int] = STEPS, repeats: int = 15) -> str:
    """A Markdown table: milliseconds of the spectral method and of squaring, in float32 and float64."""
    ways = [(way, dtype) for way in (by_eigenvalues, by_squaring) for dtype in (torch.float32, torch.float64)]
    rows = [
        "| T | spectral, float32 | float64 | squaring, float32 | float64 |",
        "| --- | --- | --- | --- | --- |",
    ]
    x, y = torch.randn(n, d, generator=_seed(0)), torch.randn(n, c, generator=_seed(1))
    for count in steps:
        runs = [lambda w=way, t=dtype, k=count: w(x.to(t), y.to(t), k) for way, dtype in ways]
        rows.append(f"| {count} | " + " | ".join(f"{1e3 * _time(run, repeats):.1f}" for run in runs) + " |")
    return "\n".join(rows)


def by_eigenvalues(x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The gradient of |w_T|^2 / 2 in x, without a bias."""
    x = x.detach().requires_grad_()
    w = pb.unroll(pb.LeastSquares(x, y, bias=False), steps=steps, optimizer=pb.SGD(0.2), method=pb.Spectral())
    return torch.autograd.grad(0.5 * w.square().sum(), x)[0]


def by_squaring(x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The same by the product formula; steps is a power of two."""
    x = x.detach().requires_grad_()
    w = 0.2 / len(x) * x.mT @ y
    m = torch.eye(x.shape[1], dtype=x.dtype) - 0.2 / len(x) * x.mT @ x
    for k in range(steps.bit_length() - 1):
        m = m @ m if k else m
        w = w + m @ w
    return torch.autograd.grad(0.5 * w.square().sum(), x)[0]


def _time(run: Callable[[], Tensor], repeats: int) -> float:
    run()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return median(samples)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def main() -> None:
    print(f"rounding, no momentum\n\n{rounding()}\n\nmomentum 0.9\n\n{rounding(momentum=0.9)}")
    print(f"\nmilliseconds, {torch.get_num_threads()} threads\n\n{times()}")


if __name__ == "__main__":
    main()
