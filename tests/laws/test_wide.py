"""Wide, narrow and tall problems, whose products take different ways (csrc/cpu/packed.hpp, thin.hpp, mix.hpp)."""

import pytest
import torch
from linear_cases import ROWS, Case, assert_same_bits, exact, forced, fused, plain, regimes
from linear_optimizers import USUAL
from tolerance import assert_matches

WIDE = {"n": 41, "m": 37, "d": 270, "c": 100, "tasks": (2,), "steps": 2, "amplitude": 0.1}
"""More than a panel of 256 features; more than 48 kB of weights; no size in whole packs."""

NARROW = {"n": 260, "m": 75, "d": 40, "c": 5, "tasks": (2,), "steps": 2, "amplitude": 0.1}
"""Four or five rows of one factor, one to five of the other; more than a panel of examples."""

TALL = {"n": 813, "m": 601, "d": 203, "c": 11, "tasks": (2,), "steps": 2, "amplitude": 0.1}
"""Uneven chunks of examples, in several blocks each; classes in parts of five and three; no size in whole packs."""

SIZES = {"wide": WIDE, "narrow": NARROW, "tall": TALL}

SGD = [row for row in ROWS if row[-1] == "sgd"]
DTYPES = [torch.float32, torch.float64]


def case_of(row, size, dtype):
    loss, targets, _, optimizer = row
    return Case(loss, targets, optimizer, USUAL[optimizer], dtype=dtype, **size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES.values(), NARROW | {"c": 4}], ids=[*SIZES, "four"])
@pytest.mark.parametrize("row", SGD, ids="-".join)
def test_the_oracle(row, size, dtype):
    case = case_of(row, size, dtype)
    with forced(row[2]):
        found = fused(case)
    best, ordinary = exact(case), plain(case) if dtype == torch.float32 else exact(case)
    for a, b, c in (
        (found.values, best.values, ordinary.values),
        (found.gradients, best.gradients, ordinary.gradients),
    ):
        for name in b:
            assert_matches(a[name], b[name], name, c[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("row", SGD, ids="-".join)
def test_threads_and_regimes(row, size, dtype):
    """Bitwise the same however rows and tasks are shared out."""
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for regime in regimes(row[2]):
                with forced(row[2], regime):
                    found.append(fused(case_of(row, size, dtype)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same_bits(other, found[0])
