"""What the adaptive optimizers share: a square root that can be differentiated at 0, decays, and the count of steps."""

from typing import Any

import torch
from torch import Tensor

from pybilevel.checks import is_number


def root(x: Tensor) -> Tensor:
    """sqrt(x) with the derivative 0 where x = 0; what rounding left below 0 counts as 0. NaN stays NaN.

    The true derivative at 0 is infinite, and meets a factor 0 further on: NaN. With 0 in its place, the derivative of
    m / (root(v) + eps) in the gradient g is exact where g and the buffers m, v before the step are 0: it is 1 / eps
    times that of m. Where v is 0 and m is not, the quotient has a kink in g, and this is the mean of its two sides.
    """
    empty = x <= 0
    return x.masked_fill(empty, 1.0).sqrt().masked_fill(empty, 0.0)


def complement(value: Any, resolved: Tensor) -> Tensor | float:
    """1 - beta, for a decay given as `value` and resolved to a tensor; exact for a number.

    1 - 0.999 is off by 1e-5 in float32 when 0.999 is rounded first.
    """
    return 1.0 - value if is_number(value) else 1.0 - resolved


def mix(old: Tensor, new: Tensor, weight: Tensor | float) -> Tensor:
    """(1 - weight) old + weight new."""
    return old + weight * (new - old)


def bias_correction(value: Any, resolved: Tensor, count: Tensor) -> Tensor:
    """1 - beta^count in float64, like `complement`. float32 would lose digits while count is small."""
    decay = torch.full_like(count, value, dtype=torch.float64) if is_number(value) else resolved.double()
    return 1.0 - decay**count


def no_steps(w: Tensor) -> Tensor:
    """The count of steps before the first: one float32 (), as torch.optim has it, for a whole parameter."""
    return torch.zeros((), dtype=torch.float32, device=w.device)


def next_count(count: Tensor) -> Tensor:
    """The count after one more step. It counts; it is not differentiated."""
    return count.detach() + 1.0
