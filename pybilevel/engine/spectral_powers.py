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

so they go through the same products, without the quotient and its cancellation: close and equal eigenvalues need no
threshold and no second formula. The step itself is affine in l: its divided difference is its slope.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Map = Sequence[Sequence[Tensor]]
"""An affine map of k = 1 (w) or 2 (w, v) numbers: k rows of k + 1 tensors, the last column multiplies b. Divided
differences of one have the same form."""


class Rule(NamedTuple):
    """The settings of constant SGD, each [*B, 1] and float64; `momentum` is None where no velocity is kept."""

    lr: Tensor
    momentum: Tensor | None
    decay: Tensor
    nesterov: bool

    def step(self, values: Tensor) -> Map:
        """One step at the eigenvalues [*B, D]."""
        a = values + self.decay
        if self.momentum is None:
            return ((1 - self.lr * a, self.lr),)
        gain, pull = self._gains(self.momentum)
        return (1 - gain * a, -pull, gain), (a, self.momentum, -torch.ones_like(gain))

    def slope(self) -> Map:
        """The derivative of `step` in the eigenvalue, which is its divided difference everywhere: [*B, 1]."""
        zero = torch.zeros_like(self.lr)
        if self.momentum is None:
            return ((-self.lr, zero),)
        return (-self._gains(self.momentum)[0], zero, zero), (torch.ones_like(zero), zero, zero)

    def _gains(self, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """What g and the old v are multiplied by in w."""
        if self.nesterov:
            return self.lr * (1 + momentum), self.lr * momentum * momentum
        return self.lr, self.lr * momentum


def power(step: Map, steps: int) -> Map:
    """The map of T = `steps` >= 1 steps; about 2 log2 T products of maps at most."""
    whole = step
    for bit in _bits(steps):
        whole = _product(whole, whole)
        if bit:
            whole = _product(step, whole)
    return whole


def differences(step: Map, slope: Map, steps: int, dtype: torch.dtype) -> Map:
    """The divided differences [*B, D, D] of `power(step, steps)` at all pairs of eigenvalues, in `dtype`.

    step: at the D eigenvalues, [*B, D]; slope: [*B, 1]; both float64, as the powers that are rounded to `dtype`.
    Cost: 5 operations on [*B, D, D] a product without momentum, 25 with it.
    """
    whole, base = step, _map(slope, lambda x: x.to(dtype).unsqueeze(-1))
    found = base
    for bit in _bits(steps):
        found = _product_rule(_side(whole, dtype, -1), found, found, _side(whole, dtype, -2))
        whole = _product(whole, whole)
        if bit:
            found = _product_rule(_side(step, dtype, -1), found, base, _side(whole, dtype, -2))
            whole = _product(step, whole)
    return found


def _bits(steps: int) -> list[bool]:
    """The binary digits after the leading one."""
    return [digit == "1" for digit in bin(steps)[3:]]


def _product(f: Map, g: Map) -> Map:
    """f after g."""
    k = len(f)
    return [[_dot(row[:k], g, j, row[k] if j == k else None) for j in range(k + 1)] for row in f]


def _product_rule(f: Map, dg: Map, df: Map, g: Map) -> Map:
    """f(l_i) dg + df g(l_j): the divided differences of f after g."""
    k = len(f)
    return [
        [_dot(drow[:k], g, j, _dot(row[:k], dg, j, drow[k] if j == k else None)) for j in range(k + 1)]
        for row, drow in zip(f, df, strict=True)
    ]


def _dot(row: Sequence[Tensor], g: Map, column: int, plus: Tensor | None) -> Tensor:
    """The product of a row with a column of g, and `plus`."""
    total = plus
    for x, line in zip(row, g, strict=True):
        total = x * line[column] if total is None else torch.addcmul(total, x, line[column])
    assert total is not None
    return total


def _side(f: Map, dtype: torch.dtype, axis: int) -> Map:
    """The values f(l_i) as [*B, D, 1] (axis -1), or f(l_j) as [*B, 1, D] (axis -2)."""
    return _map(f, lambda x: x.to(dtype).unsqueeze(axis))


def _map(f: Map, change: Callable[[Tensor], Tensor]) -> Map:
    return [[change(x) for x in row] for row in f]
