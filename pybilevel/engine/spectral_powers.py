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
threshold and no second formula. Of m powers of a map f the rule makes

    (f^m)[i, j] = sum_{s < m} f(l_i)^s f[i, j] f(l_j)^(m-1-s)

which is a matrix product of inner dimension m for each entry of f[i, j]. The step itself is affine in l, and only what
it multiplies w by depends on l: its divided difference is a column u, the same for all pairs, so there one product is
enough. T is taken in base 16, a digit at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Map = Sequence[Sequence[Tensor]]
"""An affine map of k = 1 (w) or 2 (w, v) numbers: k rows of k + 1 tensors, the last column multiplies b."""

Pairs = Mapping[tuple[int, int], Tensor]
"""The divided differences [*B, D, D] of a map, by row and column."""

Entries = Sequence[tuple[int, int]]
"""Some rows and columns of a map."""

RADIX = 16
"""Steps that one matrix product takes."""


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
    """The map of T = `steps` >= 1 steps; about 2 log2 T products of maps at most."""
    whole = step
    for digit in bin(steps)[3:]:
        whole = _product(whole, whole)
        if digit == "1":
            whole = _product(step, whole)
    return whole


def digits(steps: int) -> list[int]:
    """T in base `RADIX`; the first digit may be `RADIX` itself, which saves one."""
    found: list[int] = []
    while steps > RADIX:
        steps, digit = divmod(steps, RADIX)
        found.insert(0, digit)
    return [steps, *found]


def differences(step: Map, slope: Sequence[Tensor], steps: int, dtype: torch.dtype, wanted: Entries) -> Pairs:
    """The divided differences of `power(step, steps)` at all pairs of eigenvalues, where wanted, in `dtype`.

    step: at the D eigenvalues, [*B, D]; slope: [*B, 1]; both float64, as the powers that are rounded to `dtype`.
    Cost: a digit of T in base 16 takes 2 matrix products of inner dimension 16 without momentum, 24 with it, each
    followed by a pass over [*B, D, D]; 5 and 26 passes more if it is not zero. Fewer where not all is wanted.
    """
    every = [(r, c) for r in range(len(step)) for c in range(len(step) + 1)]
    count, *rest = digits(steps)
    found = _first(step, slope, count, dtype, every if rest else wanted)
    whole = power(step, count)
    for place, digit in enumerate(rest, 1):
        last = place == len(rest)
        entries = wanted if last else every
        rows, columns = {r for r, _ in entries}, {c for _, c in entries}
        found = _repeated(whole, found, dtype, [e for e in every if e[0] in rows] if digit else entries)
        if digit or not last:
            whole = power(whole, RADIX)
        if digit:
            few = power(step, digit)
            others = _first(step, slope, digit, dtype, [e for e in every if e[1] in columns])
            found = _product_rule(_rounded(whole, dtype), found, _rounded(few, dtype), others, entries)
            whole = _product(few, whole)
    return found


def _first(step: Map, slope: Sequence[Tensor], count: int, dtype: torch.dtype, wanted: Entries) -> Pairs:
    """The divided differences of `count` steps."""
    powers = _powers(step, count)
    left = [_dot(row[:-1], [[u.unsqueeze(-1)] for u in slope], 0, None).to(dtype).mT for row in powers]
    right = [x.to(dtype).flip(-2) for x in powers[0]]
    return {(r, c): left[r] @ right[c] for r, c in wanted}


def _repeated(whole: Map, pairs: Pairs, dtype: torch.dtype, wanted: Entries) -> Pairs:
    """The divided differences of `RADIX` times a map that has those of `pairs`."""
    k = len(whole)
    powers = _rounded(_powers(whole, RADIX), dtype)
    left, right = _map(powers, lambda x: x.mT), _map(powers, lambda x: x.flip(-2))
    found = {}
    for r, c in wanted:
        total: Any = None
        for a, b in product(range(k), range(k)):
            term = left[r][a] @ right[b][c]
            total = term.mul_(pairs[a, b]) if total is None else total.addcmul_(pairs[a, b], term)
        for a in range(k if c == k else 0):
            total.addcmul_(pairs[a, k], left[r][a].sum(-1, keepdim=True))
        found[r, c] = total
    return found


def _powers(f: Map, count: int) -> Map:
    """f^0, f^1, .. f^(count - 1), one after the other in the second last dimension: [*B, count, D]."""
    f = _map(f, lambda x: x.expand(f[0][0].shape).unsqueeze(-2))
    if len(f) == 1:
        ((a, b),) = f
        return _powers_of_one(a, b, count)
    found: Map = [[torch.full_like(x, float(r == c)) for c, x in enumerate(row)] for r, row in enumerate(f)]
    length = 1
    while length < count:
        after = _product(found, f) if length > 1 else f
        found = [
            [torch.cat(xs, -2) for xs in zip(*rows, strict=True)] for rows in zip(found, after, strict=True)
        ]
        length *= 2
        f = _product(f, f) if length < count else f
    return _map(found, lambda x: x[..., :count, :])


def _powers_of_one(a: Tensor, b: Tensor, count: int) -> Map:
    """The same of w -> a w + b, in a third of the torch operations: a^s, and b times the sum of those before it."""
    a = pad(a.expand(*a.shape[:-2], count - 1, a.shape[-1]).cumprod(-2), (0, 0, 1, 0), value=1.0)
    before = pad(a.cumsum(-2), (0, 0, 1, -1))
    return ((a, b * before),)


def _product(f: Map, g: Map) -> Map:
    """f after g."""
    k = len(f)
    return [[_dot(row[:k], g, j, row[k] if j == k else None) for j in range(k + 1)] for row in f]


def _product_rule(f: Map, df: Pairs, g: Map, dg: Pairs, wanted: Entries) -> Pairs:
    """f(l_i) dg + df g(l_j): the divided differences of f after g."""
    k = len(f)
    left, right = _map(f, lambda x: x.unsqueeze(-1)), _map(g, lambda x: x.unsqueeze(-2))
    return {
        (r, c): _dot(
            left[r][:k],
            [[dg[a, c]] for a in range(k)],
            0,
            _dot([df[r, b] for b in range(k)], right, c, df[r, k] if c == k else None),
        )
        for r, c in wanted
    }


def _dot(row: Sequence[Tensor], g: Map, column: int, plus: Tensor | None) -> Tensor:
    """The product of a row with a column of g, and `plus`."""
    total = plus
    for x, line in zip(row, g, strict=True):
        total = x * line[column] if total is None else torch.addcmul(total, x, line[column])
    assert total is not None
    return total


def _rounded(f: Map, dtype: torch.dtype) -> Map:
    return _map(f, lambda x: x.to(dtype))


def _map(f: Map, change: Callable[[Tensor], Tensor]) -> Map:
    return [[change(x) for x in row] for row in f]
