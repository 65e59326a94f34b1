"""What the adaptive optimizers share: a square root that can be differentiated at 0, decays, and the count of steps."""

from typing import Any

import torch
from torch import Tensor

from pybilevel.checks import is_number, readable


def root(x: Tensor) -> Tensor:
    """sqrt(x) with the derivative 0 where x = 0; what rounding left below 0 counts as 0. NaN stays NaN.

    The true derivative at 0 is infinite, and meets a factor 0 further on: NaN. With 0 in its place, the derivative of
    m / (root(v) + eps) in the gradient g is exact where g and the buffers m, v before the step are 0: it is 1 / eps
    times that of m. Where v is 0 and m is not, the quotient has a kink in g, and this is the mean of its two sides.

    It is the root of the least normal number instead of less (1e-19 in float32), which an eps beside it swallows.
    """
    return x.clamp_min(_least(x.dtype)).sqrt()


def complement(value: Any, resolved: Tensor) -> Tensor | float:
    """1 - beta, for a decay given as `value` and resolved to a tensor; exact for a number.

    1 - 0.999 is off by 1e-5 in float32 when 0.999 is rounded first.
    """
    return 1.0 - value if is_number(value) else 1.0 - resolved


def mix_square(old: Tensor, decay: Tensor, weight: Tensor | float, g: Tensor) -> Tensor:
    """decay old + weight g^2, in as few passes as there are."""
    if isinstance(weight, Tensor):
        return decay * old + weight * g * g
    return torch.addcmul(decay * old, g, g, value=weight)


def bias_correction(value: Any, resolved: Tensor, count: Tensor) -> Tensor | float:
    """1 - beta^count, for a decay like that of `complement`.

    Computed in float64: float32 would lose digits while count is small. A number where that needs no tensor.
    """
    if not is_number(value):
        return (1.0 - resolved.double() ** count).to(resolved.dtype)
    if readable(count):
        return float(1.0 - value ** count.item())
    return (1.0 - torch.full_like(count, value, dtype=torch.float64) ** count).to(resolved.dtype)


def no_steps(w: Tensor) -> Tensor:
    """The count of steps before the first: one float32 (), as torch.optim has it, for a whole parameter."""
    return torch.zeros((), dtype=torch.float32, device=w.device)


def next_count(count: Tensor) -> Tensor:
    """The count after one more step. It counts; it is not differentiated."""
    return count.detach() + 1.0


def _least(dtype: torch.dtype) -> float:
    """The least positive number to take a root of: subnormal in float16, whose normal ones begin at 6e-5."""
    return 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).smallest_normal
