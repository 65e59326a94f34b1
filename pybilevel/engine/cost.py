"""Operations of a fused linear problem: what the choice of coordinates compares and `explain` tells.

A multiply-add counts as two. A step, and a step back:

              forward   back (H v)   not kept   x wanted   settings wanted      ends: forward, back, x wanted
    primal    4 n d c   4 n d c      2 n d c    4 n d c    2 n d c
    dual      2 n^2 c   2 n^2 c      2 n^2 c    2 n^2 c                         2 n^2 d, 2 n^2 d, 2 n^2 d
    normal    2 d^2 c   2 d^2 c                 2 d^2 c *  2 d^2 c              2 n d^2, 2 n d^2, 2 n d^2 *

"Not kept": predictions made again in the reverse half. "Settings": step size or Nesterov momentum. *: for example
weights too. What is linear in n, d and c a step counts as nothing. With less than 4 d rows, the ends of normal
coordinates are in double precision and count twice.
"""

from typing import Literal, NamedTuple

Coordinates = Literal["primal", "dual", "normal"]
COORDINATES: tuple[Coordinates, ...] = ("primal", "dual", "normal")

TALL = 4
"""Rows a feature from which normal coordinates need no double precision (`kTall` of problems/linear_normal.hpp)."""


class Wanted(NamedTuple):
    """What the reverse half is asked for: anything at all, gradients of x, of x or weights, of step sizes; and whether
    predictions are kept for it."""

    reverse: bool = True
    features: bool = True
    examples: bool = True
    settings: bool = True
    kept: bool = True


class LinearSize(NamedTuple):
    """Sizes of a batch of linear problems: B tasks, n examples, m query examples, d features, c classes, T steps."""

    tasks: int
    n: int
    m: int
    d: int
    c: int
    steps: int

    def step_flops(self, coordinates: Coordinates) -> int:
        """Operations of one step of one task."""
        if coordinates == "primal":
            return 4 * self.n * self.d * self.c
        return 2 * (self.n if coordinates == "dual" else self.d) ** 2 * self.c

    def back_flops(self, coordinates: Coordinates, wanted: Wanted) -> int:
        """Operations of one step of one task in the reverse half."""
        if not wanted.reverse:
            return 0
        step = self.step_flops(coordinates)
        if coordinates == "primal":
            half = step // 2
            return step + half * (not wanted.kept) + step * wanted.features + half * wanted.settings
        if coordinates == "dual":
            return step + step * (not wanted.kept) + step * wanted.features
        return step + step * wanted.examples + step * wanted.settings

    def end_flops(self, coordinates: Coordinates, wanted: Wanted) -> int:
        """Operations of one task outside the loop: into the coordinates and back, and the query set."""
        query = 2 * self.m * self.d * self.c * (1 + 2 * wanted.reverse)
        if coordinates == "primal":
            return query
        if coordinates == "dual":
            model = 2 * self.n * self.d * self.c * (1 + wanted.reverse + wanted.features)
            return query + model + 2 * self.n**2 * self.d * (1 + wanted.reverse + wanted.features)
        twice = 1 if self.n >= TALL * self.d else 2
        return query + twice * 2 * self.n * self.d**2 * (1 + wanted.reverse + wanted.examples)

    def flops(self, coordinates: Coordinates, wanted: Wanted) -> int:
        """Operations of the whole call, forward and backward, nothing recomputed but what `wanted` says."""
        loop = self.steps * (self.step_flops(coordinates) + self.back_flops(coordinates, wanted))
        return self.tasks * (loop + self.end_flops(coordinates, wanted))
