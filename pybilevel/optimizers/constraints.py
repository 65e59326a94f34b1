"""Hyperparameters that must stay in an interval: a map onto it from all real numbers, or a projection after a step.

raw = constraints.positive.raw(0.1)                   # a leaf for the outer optimizer
optimizer = pb.SGD(lr=constraints.positive(raw))      # 0.1 now, and positive whatever the outer optimizer does

lr = torch.tensor(0.1, requires_grad=True)            # or: let it move freely,
outer.step()
constraints.positive.project_(lr)                     # and move it back
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.checks import extremes, is_number, readable


@dataclass(frozen=True)
class Constraint:
    """An open interval, with a differentiable map onto it from all real numbers.

    Attributes:
        name: for messages.
        low, high: its ends; infinite where there is none.
        onto: the map, increasing.
        inverse: its inverse.
    """

    name: str
    low: float
    high: float
    onto: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]

    def __call__(self, raw: Any) -> Any:
        """The value of a tensor, or of every tensor of a pytree; differentiable.

        It lies strictly inside, so that every check passes: where the map rounds to an end (or to infinity), the value
        is the number next to it, and its derivative 0.
        """
        return pytree.tree_map(lambda x: self.onto(x).clamp(*_inside(self.low, self.high, x.dtype)), raw)

    def raw(self, value: Any) -> Any:
        """A new leaf whose value is `value`; for a pytree of numbers and tensors, a leaf for each.

        Raises:
            ValueError: a value is not strictly inside (values are read on CPU only).
        """
        return pytree.tree_map(self._raw, value)

    def project_(self, value: Any, margin: float = 0.0) -> Any:
        """Moves a tensor, or every tensor of a pytree, to the nearest point of [low + margin, high - margin], in place.

        For use after an outer step. A margin > 0 keeps away from the ends, such as of momentum, which must be < 1.
        NaN stays NaN. Returns `value`.
        """
        if not 0 <= 2 * margin <= self.high - self.low:
            raise ValueError(
                f"margin must be >= 0 and leave something of ({self.low:g}, {self.high:g}), got {margin!r}"
            )
        with torch.no_grad():
            for leaf in pytree.tree_leaves(value):
                leaf.clamp_(self.low + margin, self.high - margin)
        return value

    def _raw(self, value: float | Tensor) -> Tensor:
        tensor = torch.tensor(float(value)) if is_number(value) else torch.as_tensor(value).detach()
        if readable(tensor):
            least, greatest = extremes(tensor)
            if not (self.low < least and greatest < self.high):
                offending = greatest if self.low < least else least
                raise ValueError(
                    f"a value of {self.name} must be inside ({self.low:g}, {self.high:g}), got {offending:g}"
                )
        return self.inverse(tensor).clone().requires_grad_()

    def __repr__(self) -> str:
        return f"constraints.{self.name}"


def interval(low: float, high: float) -> Constraint:
    """low < value < high, by low + (high - low) sigmoid(raw).

    Raises:
        ValueError: not low < high, or one is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"interval needs finite low < high, got {low!r} and {high!r}")
    return Constraint(
        name=f"interval({low:g}, {high:g})",
        low=low,
        high=high,
        onto=lambda raw: low + (high - low) * raw.sigmoid(),
        inverse=lambda value: ((value - low) / (high - low)).logit(),
    )


def _exp(raw: Tensor) -> Tensor:
    """exp without overflow, whose derivative times 0 would be NaN."""
    return raw.clamp(max=math.log(torch.finfo(raw.dtype).max) - 1.0).exp()


def _softplus_inverse(value: Tensor) -> Tensor:
    return value + (-torch.expm1(-value)).log()


positive = Constraint("positive", 0.0, math.inf, _exp, torch.log)
"""value > 0, by exp(raw): an outer step of size s changes the value by the factor exp(s), whatever its size. For step
sizes, weight decay and eps."""

positive_softplus = Constraint(
    "positive_softplus", 0.0, math.inf, torch.nn.functional.softplus, _softplus_inverse
)
"""value > 0, by log(1 + exp(raw)): far above 1 an outer step adds to the value. For weights of examples."""

unit_interval = Constraint("unit_interval", 0.0, 1.0, torch.sigmoid, torch.logit)
"""0 < value < 1, by 1 / (1 + exp(-raw)). For momentum and decays."""


def _inside(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of a dtype inside an interval; no subnormal ones, which may be flushed to 0."""
    ends = torch.tensor([low, high], dtype=dtype)
    least, greatest = torch.nextafter(ends, torch.tensor([math.inf, -math.inf], dtype=dtype)).tolist()
    return (max(least, torch.finfo(dtype).tiny) if low == 0 else least), greatest
