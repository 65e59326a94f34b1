"""Dtypes and devices that no operation takes are one clear error each, before anything is computed."""

import pytest
import torch

from pybilevel.problems import LeastSquares, SoftmaxRegression

X, Y = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize("problem", [SoftmaxRegression, LeastSquares])
@pytest.mark.parametrize(
    ("x", "y", "error", "text"),
    [
        (
            X,
            Y.to(torch.uint16),
            TypeError,
            r"y must hold integer.*got torch.uint16: call .long\(\).*accepted.*uint8",
        ),
        (
            X.to(torch.float8_e4m3fn),
            Y,
            TypeError,
            r"x must be floating.*float8_e4m3fn: call .float\(\).*bfloat16",
        ),
        (X.to("meta"), Y.to("meta"), ValueError, r'x is on "meta" and has no data: load its values'),
    ],
    ids=["uint16", "float8", "meta"],
)
def test_unusable_tensors_say_what_is_accepted(problem, x, y, error, text):
    with pytest.raises(error, match=text):
        problem(x, y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_accepted_class_dtype(dtype):
    for problem in (SoftmaxRegression(X, Y.to(dtype)), LeastSquares(X, Y.to(dtype))):
        assert problem(problem.initial()).isfinite()
