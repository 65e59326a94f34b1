"""Which coordinates and which regime a fused linear problem runs in: the fewest operations that round well."""

from collections.abc import Collection
from typing import Literal

import torch

from pybilevel.engine.cost import COORDINATES, TALL, Coordinates, LinearSize, Wanted

Regime = Literal["tasks", "rows", "lanes"]

ROWS_WORK = 1 << 17
"""Multiply-adds of one step of one task from which all threads share a task (measured on 2 cores: a parallel region
costs about 5 us, which is what one core needs for this many multiply-adds)."""

GRID_WORK = 1 << 20
"""The same on CUDA, where all blocks share a task and meet at barriers of the grid (predicted, not measured)."""

FEW_TASKS = 8
"""With this many tasks or more, a thread per task keeps all threads busy."""

LANE_ROWS, LANE_PACKS = 25, 8
"""Examples up to which a task per SIMD lane is no slower than a pack of rows, given that many packs of tasks at least,
two of which run side by side, to have something for every thread. On one core (8 lanes, 16 registers, c = 5, `python -m
benchmarks.coordinates`) lanes are 2.0 times as fast for n = 5, 1.2 for n = 16, 1.1 for n = 25, and 0.7 for n = 32. The
number of threads may not decide: the two do not round alike."""

LONG_NORMAL = 256
"""Steps up to which float32 normal coordinates round well with momentum, or with few rows; see `normal_rounds_well`."""

LONG, LONG_MOMENTUM = 32, 8
"""Steps up to which float32 dual coordinates round well even where n > d/2, without and with momentum; see
`dual_rounds_well`. The first is also that of normal ones with momentum where n < 4 d."""


def choose_coordinates(size: LinearSize, wanted: Wanted, excluded: Collection[Coordinates]) -> Coordinates:
    """The coordinates that need the fewest operations, of those that are not excluded; primal ones never are."""
    chosen: Coordinates = "primal"
    for one in COORDINATES:  # a loop, which torch.compile can follow
        if one not in excluded and size.flops(one, wanted) < size.flops(chosen, wanted):
            chosen = one
    return chosen


def dual_rounds_well(size: LinearSize, dtype: torch.dtype, momentum: bool) -> bool:
    """Whether dual coordinates are as exact as primal ones, whatever they cost.

    With n > d/2 the Gram matrix is singular or nearly so, and A then grows with T, and with 1 / (1 - momentum), along
    directions that X^T A cancels. Measured in float32 (`python -m benchmarks.coordinates`), relative errors of
    hypergradients on Gaussian features, squared loss, dual against primal: n = 100, d = 64: 5e-7 and 3e-7 (T = 16),
    1.5e-6 and 4e-7 (T = 64); n = 128, d = 256, T = 256: 1.6e-6 and 1.1e-6; n = 300, d = 256, T = 1024: 2.0e-5 and
    1.2e-6; n = 1000, d = 64: 1.5e-5 and 1.5e-6 (T = 256), 2.9e-4 and 1.6e-6 (T = 1024, momentum 0.9).
    """
    long = LONG_MOMENTUM if momentum else LONG
    return dtype == torch.float64 or size.steps <= long or 2 * size.n <= size.d


def normal_rounds_well(size: LinearSize, dtype: torch.dtype, momentum: bool) -> bool:
    """Whether normal coordinates are about as exact as primal ones, whatever they cost.

    S has the square of the condition number of the features, which with n near d is large: with less than 4 d rows its
    sums, and those that cancel on the way back, are in double precision. Measured in float32 (`python -m
    benchmarks.coordinates`), relative errors of hypergradients on Gaussian features, normal against primal: n = 1000,
    d = 64: 1.9e-6 and 1.5e-6 (T = 256 and 4096), 5.3e-6 and 1.6e-6 (T = 1024, momentum 0.9); n = 300, d = 256: 1.7e-6
    and 7e-7 (T = 256), 8.2e-6 and 1.2e-6 (T = 1024); with momentum 0.9 2.1e-6 and 1.1e-6 (T = 32), 5.7e-6 and 2.1e-6
    (T = 64).
    """
    if dtype == torch.float64:
        return True
    if size.n >= TALL * size.d:
        return size.steps <= LONG_NORMAL or not momentum
    return size.steps <= (LONG if momentum else LONG_NORMAL)


def choose_regime(size: LinearSize, coordinates: Coordinates, lanes: int) -> Regime:
    """A thread per task, all threads on the rows of each task in turn (bitwise the same), or a task per SIMD lane.

    `lanes` is the number of SIMD lanes, 1 on CUDA.
    """
    large = size.step_flops(coordinates) >= 2 * (ROWS_WORK if lanes > 1 else GRID_WORK)
    if size.tasks < FEW_TASKS and large:
        return "rows"
    small = coordinates == "dual" and size.n <= LANE_ROWS and size.tasks >= LANE_PACKS * lanes
    return "lanes" if small and lanes > 1 else "tasks"
