"""Once per input: gradients are what finite differences of the fused values say, whatever the oracle believes."""

import pytest
import torch
from linear_cases import ROWS, Built, Case, forced, total
from linear_optimizers import RICHEST, USUAL, VARIANTS
from tolerance import FINITE_DIFFERENCE_LIMIT

EPSILON = 1e-5


def smooth(optimizer):
    """The variant with most settings that has no kink: the slope across that of amsgrad's maximum is neither side's."""
    variant = RICHEST[optimizer]
    return USUAL[optimizer] if VARIANTS[optimizer][variant][1].get("amsgrad") else variant


def inputs_of(row):
    loss, targets, _, optimizer = row
    case = Case(loss, targets, optimizer, smooth(optimizer), objective="ml")
    return [(row, name) for name in case.inputs()]


@pytest.mark.parametrize("row, name", [pair for row in ROWS for pair in inputs_of(row)], ids=str)
def test_central_difference(row, name):
    loss, targets, coordinates, optimizer = row
    case = Case(loss, targets, optimizer, smooth(optimizer), objective="ml")
    leaves = case.inputs()
    direction = torch.randn_like(leaves[name])

    def outer(shift):
        moved = leaves | {name: leaves[name] + shift * direction}
        return total(Built(case, moved).fused())

    with forced(coordinates):
        (gradient,) = torch.autograd.grad(outer(0.0), leaves[name])
        with torch.no_grad():
            slope = (outer(EPSILON) - outer(-EPSILON)) / (2 * EPSILON)
    expected = (gradient * direction).sum()
    assert abs(slope - expected) <= FINITE_DIFFERENCE_LIMIT * max(abs(expected), gradient.norm())
