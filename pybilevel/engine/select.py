"""Which coordinates and which regime a fused linear problem runs in, by counting operations.

primal   a step is two products of n x d by d x c:                     12 n d c T forward and backward
dual     a step is one product of n x n by n x c, and K = X X^T once:    6 n^2 c T + 4 n^2 d

(multiply-adds count as two operations; backward costs twice forward; hypergradients of x included.)
"""

from typing import Literal, NamedTuple

import torch

Coordinates = Literal["primal", "dual"]
Regime = Literal["tasks", "rows", "lanes"]

ROWS_WORK = 1 << 17
"""Multiply-adds of one step of one task from which all threads share a task (measured on 2 cores: a parallel region
costs about 5 us, which is what one core needs for this many multiply-adds)."""

FEW_TASKS = 8
"""With this many tasks or more, a thread per task keeps all threads busy."""

LANE_ROWS = 16
"""Examples up to which a task per SIMD lane is faster than a pack of rows."""

LONG, LONG_MOMENTUM = 32, 8
"""Steps up to which float32 dual coordinates round well even where n > d/2, without and with momentum; see
`dual_rounds_well`."""


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
        return 4 * self.n * self.d * self.c if coordinates == "primal" else 2 * self.n**2 * self.c

    def loop_flops(self, coordinates: Coordinates) -> int:
        """Operations of one task's loop, forward and backward, without what primal and dual share."""
        gram = 4 * self.n**2 * self.d if coordinates == "dual" else 0
        return 3 * self.steps * self.step_flops(coordinates) + gram

    def end_flops(self) -> int:
        """Operations of one task outside the loop, forward and backward: the model, and logits of the query set."""
        return 6 * self.n * self.d * self.c + 6 * self.m * self.d * self.c

    def flops(self, coordinates: Coordinates) -> int:
        """Operations of the whole call, forward and backward."""
        return self.tasks * (self.loop_flops(coordinates) + self.end_flops())

    def dual_limit(self) -> float:
        """The number of examples below which dual coordinates cost less: 2 d / (1 + 2 d / (3 c T))."""
        if self.steps == 0:
            return 0.0
        return 2 * self.d / (1 + 2 * self.d / (3 * self.c * self.steps))


def choose_coordinates(size: LinearSize) -> Coordinates:
    """The coordinates that need fewer operations."""
    return "dual" if size.loop_flops("dual") < size.loop_flops("primal") else "primal"


def dual_rounds_well(size: LinearSize, dtype: torch.dtype, momentum: bool) -> bool:
    """Whether dual coordinates are as exact as primal ones, whatever they cost.

    With n > d/2 the Gram matrix is singular or nearly so, and A then grows with T, and with 1 / (1 - momentum), along
    directions that X^T A cancels. Measured in float32, relative errors of hypergradients on Gaussian features, dual
    against primal: squared loss, n = 100, d = 64: 6e-7 and 2e-7 (T = 16), 2e-6 and 3e-7 (T = 64); n = 300, d = 256,
    T = 256: 6e-6 and 5e-7; n = 128, d = 256, T = 256: 9e-7 and 6e-7; cross entropy with momentum 0.9, n = 100, d = 64,
    T = 64: 2.3e-5 and 5e-6.
    """
    long = LONG_MOMENTUM if momentum else LONG
    return dtype == torch.float64 or size.steps <= long or 2 * size.n <= size.d


def choose_regime(size: LinearSize, coordinates: Coordinates, lanes: int) -> Regime:
    """A thread per task, all threads on the rows of each task in turn (bitwise the same), or a task per SIMD lane.

    `lanes` is the number of SIMD lanes, 1 on CUDA.
    """
    few, large = size.tasks < FEW_TASKS, size.step_flops(coordinates) >= 2 * ROWS_WORK
    if few and large:
        return "rows"
    tiny = coordinates == "dual" and size.n <= LANE_ROWS and 2 * size.tasks >= lanes > 1
    return "lanes" if tiny else "tasks"
