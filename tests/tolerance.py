"""The one policy of tolerances. Every comparison with the oracle goes through `assert_matches`.

float64: relative error at most 1e-9. float32: at most 5e-6, or twice the error that plain PyTorch itself makes in
float32, both against float64. Errors are relative to the largest value of the exact tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOAT64_LIMIT = 1e-9
FLOAT32_LIMIT = 5e-6
PLAIN_FACTOR = 2.0
FINITE_DIFFERENCE_LIMIT = 1e-6


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """max |actual - exact| / max |exact|, in float64; the absolute error where exact is all zeros; NaN is infinite."""
    assert actual.shape == exact.shape, f"shapes differ: {list(actual.shape)} and {list(exact.shape)}"
    if exact.numel() == 0:
        return 0.0
    actual, exact = actual.detach().double().cpu(), exact.detach().double().cpu()
    scale = exact.abs().max().item()
    error = ((actual - exact).abs().max() / (scale or 1.0)).item()
    return error if error == error else float("inf")


def limit(dtype: torch.dtype, plain_error: float = 0.0) -> float:
    """The largest relative error allowed in a dtype, given the one that plain PyTorch makes in it."""
    if dtype == torch.float64:
        return FLOAT64_LIMIT
    return max(FLOAT32_LIMIT, PLAIN_FACTOR * plain_error)


def assert_matches(actual: Tensor, exact: Tensor, name: str = "result", plain: Tensor | None = None) -> None:
    """Assert that `actual` is `exact` (float64) up to the policy; `plain` is plain PyTorch's result in its dtype."""
    plain_error = 0.0 if plain is None else relative_error(plain, exact)
    error, allowed = relative_error(actual, exact), limit(actual.dtype, plain_error)
    assert error <= allowed, f"{name}: relative error {error:.3g} exceeds {allowed:.3g} ({actual.dtype})"


def assert_all_match(
    actual: Sequence[Tensor] | Mapping[str, Tensor], exact: Sequence[Tensor] | Mapping[str, Tensor]
) -> None:
    """`assert_matches` for every entry of two sequences or two mappings."""
    if isinstance(actual, Mapping) and isinstance(exact, Mapping):
        assert actual.keys() == exact.keys()
        for name in exact:
            assert_matches(actual[name], exact[name], name)
    else:
        for i, (a, b) in enumerate(zip(list(actual), list(exact), strict=True)):
            assert_matches(a, b, f"entry {i}")
