"""Powers of the step of gradient descent on a quadratic, one eigenvalue at a time, and their divided differences.

Along an eigenvector of the quadratic, with eigenvalue l, one step is an affine map of the numbers (w, v), with b what
the targets add to the gradient and a = l + weight_decay:

    g = a w - b;   v' = momentum v + g;   w' = w - lr (g + momentum v' if nesterov else v')

    no momentum   w' = (1 - lr a) w + lr b
    momentum      w' = (1 - k a) w - k m v + k b       k = lr,             m = momentum
                  v' = a w + momentum v - b            k = lr (1 + momentum), k m = lr momentum^2   with Nesterov

Its T-th power is T steps. Left-to-right binary powering takes about log2 T products, never divides by l, and never
subtracts nearly equal numbers to get the coefficient of b, so l = 0 is an eigenvalue like any other.

*Divided differences* f[i, j] = (f(l_i) - f(l_j)) / (l_i - l_j), or f'(l_i) where the two agree, obey the product rule

    (f g)[i, j] = f(l_i) g[i, j] + f[i, j] g(l_j)

so they come of sums of products, without the quotient and its cancellation: close and equal eigenvalues need no
threshold and no second formula. The step itself is affine in l, and only what it multiplies w by depends on l: its
divided difference is a column u, the same for all pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel import ops

Map = Sequence[Sequence[Tensor]]
"""An affine map of k = 1 (w) or 2 (w, v) numbers: k rows of k + 1 tensors, the last column multiplies b."""

Pairs = Mapping[tuple[int, int], Tensor]
"""The divided differences [*B, D, D] of a map, by row and column."""


class Rule(NamedTuple):
    """The settings of constant SGD, each [*B, 1] and float64; `momentum` is None where no velocity is kept."""

    lr: Tensor
    momentum: Tensor | None
    decay: Tensor
    nesterov: bool

    @property
    def states(self) -> int:
        """k."""
        return 1 if self.momentum is None else 2

    @property
    def places(self) -> list[tuple[int, int]]:
        """The rows and columns of the map."""
        return [(r, c) for r in range(self.states) for c in range(self.states + 1)]

    def step(self, values: Tensor) -> Map:
        """One step at the eigenvalues [*B, D]."""
        a = values + self.decay
        if self.momentum is None:
            return ((1 - self.lr * a, self.lr),)
        gain, pull = self._gains(self.momentum)
        return (1 - gain * a, -pull, gain), (a, self.momentum, -torch.ones_like(gain))

    def slope(self) -> Sequence[Tensor]:
        """u, the derivative of `step` in the eigenvalue: of the column of w; the others have none. k of [*B, 1]."""
        if self.momentum is None:
            return (-self.lr,)
        return -self._gains(self.momentum)[0], torch.ones_like(self.lr)

    def _gains(self, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """What g and the old v are multiplied by in w."""
        if self.nesterov:
            return self.lr * (1 + momentum), self.lr * momentum * momentum
        return self.lr, self.lr * momentum


def power(step: Map, steps: int) -> Map:
    """The map of T = `steps` >= 1 steps; `products` of maps, at most 2 log2 T."""
    whole = step
    for digit in bin(steps)[3:]:
        whole = _product(whole, whole)
        if digit == "1":
            whole = _product(step, whole)
    return whole


def products(steps: int) -> int:
    """How many products of maps `power` takes."""
    return steps.bit_length() + steps.bit_count() - 2


def functions(rule: Rule, values: Tensor, steps: int) -> Map:
    """`power` of the step at the eigenvalues [*B, D], each entry of that shape; not differentiable on a CPU."""
    if ops.spectral_native(values):
        flat = ops.spectral_power(values, *rule, steps).unbind(0)
        width = rule.states + 1
        return [flat[k : k + width] for k in range(0, len(flat), width)]
    return [[x.expand(values.shape) for x in row] for row in power(rule.step(values), steps)]


def weighted(rule: Rule, values: Tensor, steps: int, products: Pairs) -> Tensor:
    """The sum over some entries of f[l_i, l_j] (P[i, j] + P[j, i]), where f is `functions`: [*B, D, D].

    values: [*B, D]; products: P [*B, D, D] by row and column of the map.
    Cost: `ops.spectral_pairs` on a CPU; elsewhere about log2 T products of maps over [*B, D, D].
    """
    if ops.spectral_native(values):
        given = [products.get(place) for place in rule.places]
        total: Tensor = ops.spectral_pairs(values, *rule, steps, given)
        return total
    dtype = next(iter(products.values())).dtype
    pairs = differences(rule, values, values, steps, dtype)
    half: Any = sum(pairs[place] * p for place, p in products.items())
    both: Tensor = half + half.mT
    return both


def edges(rule: Rule, values: Tensor, steps: int) -> Pairs:
    """The divided differences of `functions` with the last eigenvalue, [*B, D], by row and column."""
    if ops.spectral_native(values):
        found = ops.spectral_edges(values, *rule, steps).unbind(0)
        return dict(zip(rule.places, found, strict=True))
    pairs = differences(rule, values, values[..., -1:], steps, values.dtype)
    return {place: x.squeeze(-1) for place, x in pairs.items()}


def differences(rule: Rule, left: Tensor, right: Tensor, steps: int, dtype: torch.dtype) -> Pairs:
    """The divided differences of `power` at the eigenvalues left [*B, p] and right [*B, q]: [*B, p, q], in `dtype`.

    Cost: passes over all pairs, 5 (26 with momentum) for each product of `power`.
    """
    step, step_right, slope = rule.step(left), rule.step(right), rule.slope()
    none = torch.zeros_like(slope[0])
    one = {(r, c): (none if c else slope[r]).to(dtype).unsqueeze(-1) for r, c in rule.places}
    f, g = step, step_right
    found: Pairs = one
    for digit in bin(steps)[3:]:
        found = _product_rule(f, found, g, found, dtype)
        f, g = _product(f, f), _product(g, g)
        if digit == "1":
            found = _product_rule(step, one, g, found, dtype)
            f, g = _product(step, f), _product(step_right, g)
    shape = (*left.shape, right.shape[-1])
    return {place: x.expand(shape) for place, x in found.items()}


def _product(f: Map, g: Map) -> Map:
    """f after g."""
    k = len(f)
    return [[_dot(row[:k], g, j, row[k] if j == k else None) for j in range(k + 1)] for row in f]


def _product_rule(f: Map, df: Pairs, g: Map, dg: Pairs, dtype: torch.dtype) -> Pairs:
    """f(l_i) dg + df g(l_j): the divided differences of f after g."""
    k = len(f)
    left = [[x.to(dtype).unsqueeze(-1) for x in row] for row in f]
    right = [[x.to(dtype).unsqueeze(-2) for x in row] for row in g]
    found = {}
    for r, c in df:
        after = _dot([df[r, b] for b in range(k)], right, c, df[r, k] if c == k else None)
        found[r, c] = _dot(left[r][:k], [[dg[a, c]] for a in range(k)], 0, after)
    return found


def _dot(row: Sequence[Tensor], g: Map, column: int, plus: Tensor | None) -> Tensor:
    """The product of a row with a column of g, and `plus`."""
    total = plus
    for x, line in zip(row, g, strict=True):
        total = x * line[column] if total is None else torch.addcmul(total, x, line[column])
    assert total is not None
    return total
