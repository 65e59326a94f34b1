"""float32: as exact as the policy says, 5e-6 or twice the error of plain PyTorch in float32, both against float64."""

from itertools import product

import pytest
import torch
from linear_cases import PAIRS, ROWS, Case, exact, forced, fused, plain
from linear_optimizers import USUAL
from tolerance import assert_matches

import pybilevel as pb
from benchmarks.coordinates import Sizes, errors

# Sizes at which the cost chooses these coordinates. Dual ones lose more in float32 where n > d: the coefficients of a
# model are then not unique, and the gradient of l2 is a sum of larger terms (measured: 2.6 times PyTorch's error).
SIZES = {
    "primal": [{"n": 40, "m": 11, "d": 17, "c": 3}, {"n": 9, "m": 15, "d": 4, "c": 5}],
    "dual": [{"n": 40, "m": 11, "d": 90, "c": 3}, {"n": 5, "m": 15, "d": 40, "c": 5}],
    "lanes": [{"n": 16, "m": 11, "d": 90, "c": 3}, {"n": 5, "m": 15, "d": 40, "c": 5}],
    "normal": [{"n": 40, "m": 11, "d": 17, "c": 3}, {"n": 60, "m": 15, "d": 4, "c": 5}],
}


def assert_precise(case, coordinates):
    with forced(coordinates):
        found = fused(case)
    ordinary, best = plain(case), exact(case)
    for a, b, c in (
        (found.values, best.values, ordinary.values),
        (found.gradients, best.gradients, ordinary.gradients),
    ):
        for name in b:
            assert_matches(a[name], b[name], name, c[name])


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_float32(pair, size):
    loss, targets, coordinates, optimizer, variant = pair
    sizes = SIZES[coordinates][size]
    case = Case(loss, targets, optimizer, variant, objective="ml", dtype=torch.float32, **sizes)
    assert_precise(case, coordinates)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_float32_through_many_steps(row):
    loss, targets, coordinates, optimizer = row
    case = Case(
        loss, targets, optimizer, USUAL[optimizer], steps=60, dtype=torch.float32, **SIZES[coordinates][1]
    )
    assert_precise(case, coordinates)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype):
    """Bitwise what float32 gives on the same numbers; gradients come back in the dtype of the leaf."""
    x = torch.randn(3, 6, 4).to(dtype).requires_grad_()
    y = torch.randint(3, (3, 6))

    def run(x):
        w = pb.unroll(
            pb.SoftmaxRegression(x, y, num_classes=3), steps=3, optimizer=pb.SGD(0.5), backend="fused"
        )
        return w, torch.autograd.grad(w.sin().sum(), x)[0]

    w, x_bar = run(x)
    same, same_bar = run(x.detach().float().requires_grad_())
    assert w.dtype == torch.float32 and x_bar.dtype == dtype
    assert torch.equal(w, same) and torch.equal(x_bar, same_bar.to(dtype))


@pytest.mark.parametrize("variant", ["plain", "momentum"])
@pytest.mark.parametrize("n", [20, 40, 60])
def test_the_chosen_coordinates_are_precise_where_the_gram_matrix_is_nearly_singular(n, variant):
    """d/2 < n < 2 d, short and long: nothing forced, so this is what a caller gets."""
    for loss, steps in product(("softmax", "squared"), (8, 60)):
        case = Case(loss, "soft", "sgd", variant, n=n, m=11, d=32, c=5, steps=steps, dtype=torch.float32)
        assert_precise(case, None)


@pytest.mark.parametrize("n", [70, 80, 100])
def test_normal_coordinates_of_few_rows_are_about_as_exact_as_primal_ones(n):
    """n little more than d, where sums that make S and its way back cancel; measured: 1.2 to 2.2 times the error."""
    found = errors(Sizes(pb.LeastSquares, n=n, d=64, c=8, steps=256))
    assert found["normal"] < 3 * found["primal"] < 9 * found["dual"]
    assert len(set(found.values())) == 3  # no coordinates gave those of another
