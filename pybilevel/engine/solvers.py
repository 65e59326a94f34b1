"""Linear systems A q = b of which only products with A are known, for many independent tasks at once.

Vectors are lists of tensors [*B, ...]. With B tasks A is block diagonal, so inner products are taken task by task and
every task has its own step lengths; one that has converged stands still while the others go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Vector = list[Tensor]
Product = Callable[[Vector], Vector]
Solver = Callable[["System", Vector, Vector], tuple[Vector, int, str]]
"""(system, q, b - A q) -> a better q, the iterations made, and why it stopped."""

POWER_ITERATIONS = 12
"""Products that `neumann` spends on the largest eigenvalue; its step is halved where that was not enough."""


@dataclass(frozen=True)
class System:
    """A q = b.

    Attributes:
        product: q -> A q.
        b: the right-hand side.
        lead: how many leading axes of every tensor are tasks.
        max_iter: iterations at most.
        tol: a task has converged where |b - A q| <= tol |b|.
    """

    product: Product
    b: Vector
    lead: int
    max_iter: int
    tol: float

    def dot(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
        """The inner products, one a task: [*B]."""
        parts = [
            (a * b).flatten(self.lead).sum(-1) if a.ndim > self.lead else a * b
            for a, b in zip(x, y, strict=True)
        ]
        return sum(parts[1:], parts[0])

    def add(self, x: Vector, scale: Tensor, y: Vector) -> Vector:
        """x + scale y, with one scale a task."""
        return [a + self.spread(scale, a) * b for a, b in zip(x, y, strict=True)]

    def choose(self, mask: Tensor, x: Vector, y: Vector) -> Vector:
        """x in the tasks of the mask, y in the others."""
        return [torch.where(self.spread(mask, a), a, b) for a, b in zip(x, y, strict=True)]

    def residual(self, q: Vector) -> Vector:
        """b - A q."""
        return [b - a for b, a in zip(self.b, self.product(q), strict=True)]

    @property
    def limit(self) -> Tensor:
        """The squared residual at which each task has converged."""
        return self.tol**2 * self.dot(self.b, self.b)

    def spread(self, scale: Tensor, x: Tensor) -> Tensor:
        """One number a task, [*B], in a shape that broadcasts to x."""
        return scale.reshape(*scale.shape, *[1] * (x.ndim - self.lead))


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        q: the solution.
        residual: |b - A q| / |b| in the end, one a task: [*B].
        iterations: how many were made.
        stopped: why: "converged", "max_iter" or "curvature" (cg met a direction along which A is not positive,
            normal_cg one along which it is 0).
    """

    q: Vector
    residual: Tensor
    iterations: int
    stopped: str


def solve(solver: str, system: System, start: Vector | None = None) -> Solution:
    """Solve by one of `SOLVERS`, from `start` or from zero; the residual is computed from the result once more."""
    if start is None:
        q, r = [torch.zeros_like(b) for b in system.b], system.b
    else:
        q, r = start, system.residual(start)
    q, iterations, stopped = SOLVERS[solver](system, q, r)
    size, left = system.dot(system.b, system.b), system.residual(q)
    found = system.dot(left, left)
    residual = torch.where(size > 0, _ratio(found, size), found).sqrt()
    # the residual of the recurrence drifts from this one by rounding, so a factor 2 is allowed
    if bool((residual <= 2 * system.tol).all()):
        stopped = "converged"
    elif stopped == "converged":
        stopped = "max_iter"
    return Solution(q, residual, iterations, stopped)


def cg(system: System, q: Vector, r: Vector) -> tuple[Vector, int, str]:
    """Conjugate gradients (Hestenes & Stiefel 1952): A symmetric and positive definite; one product an iteration.

    A task in which a direction has no curvature, or a negative one, stops there. Where A is singular and b out of its
    range, residuals grow in the end: the best iterate is returned.
    """
    p, rr, limit = r, system.dot(r, r), system.limit
    best, least = q, rr
    flat, largest = torch.zeros_like(rr, dtype=torch.bool), torch.zeros_like(rr)
    for k in range(system.max_iter):
        active = (rr > limit) & ~flat
        if not bool(active.any()):
            return best, k, "curvature" if bool(flat.any()) else "converged"
        ap = system.product(p)
        curvature, size = system.dot(p, ap), system.dot(p, p)
        largest = torch.maximum(largest, _ratio(system.dot(ap, ap), size).sqrt())
        flat = flat | (active & ~(curvature > 10 * _eps(rr) * largest * size))
        active = active & ~flat
        step = torch.where(active, _ratio(rr, curvature), 0.0)
        q, r = system.add(q, step, p), system.add(r, -step, ap)
        new = system.dot(r, r)
        best, least = system.choose(new < least, q, best), torch.minimum(new, least)
        p = system.add(r, torch.where(active, _ratio(new, rr), 0.0), p)
        rr = new
    return best, system.max_iter, "max_iter"


def normal_cg(system: System, q: Vector, r: Vector) -> tuple[Vector, int, str]:
    """Conjugate gradients on A^2 q = A b: A symmetric, indefinite too; two products an iteration.

    The residual never grows; a task stops where A r = 0, that is where b has nothing more in the range of A.
    """
    z = system.product(r)
    p, zz, limit = z, system.dot(z, z), system.limit
    flat, largest = torch.zeros_like(zz, dtype=torch.bool), torch.zeros_like(zz)
    for k in range(system.max_iter):
        rr = system.dot(r, r)
        left = rr > limit
        flat = flat | (left & (zz <= (10 * _eps(rr) * largest) ** 2 * rr))
        active = left & ~flat
        if not bool(active.any()):
            return q, k, "curvature" if bool(flat.any()) else "converged"
        ap = system.product(p)
        size = system.dot(ap, ap)
        largest = torch.maximum(largest, _ratio(size, system.dot(p, p)).sqrt())
        step = torch.where(active, _ratio(zz, size), 0.0)
        q, r = system.add(q, step, p), system.add(r, -step, ap)
        z = system.product(r)
        new = system.dot(z, z)
        p = system.add(z, torch.where(active, _ratio(new, zz), 0.0), p)
        zz = new
    return q, system.max_iter, "max_iter"


def neumann(system: System, q: Vector, r: Vector) -> tuple[Vector, int, str]:
    """q = eta sum_i (I - eta A)^i b, the Neumann series, with eta = 1 / |A| by power iteration; one product each.

    A symmetric and positive semidefinite: the residual then never grows, and where it does, eta was too large.
    """
    rr, limit = system.dot(r, r), system.limit
    eta = 1.0 / _largest(system)
    for k in range(system.max_iter):
        if not bool((rr > limit).any()):
            return q, k, "converged"
        step = torch.where(rr > limit, eta, 0.0)
        ahead = system.add(r, -step, system.product(r))
        new = system.dot(ahead, ahead)
        good = new <= rr
        q = system.choose(good, system.add(q, step, r), q)
        r, rr = system.choose(good, ahead, r), torch.where(good, new, rr)
        eta = torch.where(good, eta, eta / 2)
    return q, system.max_iter, "max_iter"


def fixed_point(system: System, q: Vector, r: Vector) -> tuple[Vector, int, str]:
    """q <- q + b - A q: for A = I - J^T the iteration q <- J^T q + b, which converges where Phi contracts."""
    limit = system.limit
    for k in range(system.max_iter):
        if not bool((system.dot(r, r) > limit).any()):
            return q, k, "converged"
        q = [a + b for a, b in zip(q, r, strict=True)]
        r = system.residual(q)
    return q, system.max_iter, "max_iter"


SOLVERS: dict[str, Solver] = {
    "cg": cg,
    "normal_cg": normal_cg,
    "neumann": neumann,
    "fixed_point": fixed_point,
}


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b; 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _largest(system: System) -> Tensor:
    """About the largest eigenvalue of each task, from below; 1 where A b = 0."""
    v = system.b
    size = torch.ones_like(system.dot(v, v))
    for _ in range(POWER_ITERATIONS):
        norm = system.dot(v, v).sqrt()
        inverse = _ratio(torch.ones_like(norm), norm)
        v = system.product([system.spread(inverse, x) * x for x in v])
        size = system.dot(v, v).sqrt()
    return torch.where(size > 0, size, 1.0)
