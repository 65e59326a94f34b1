"""Adagrad: torch.optim.Adagrad's conventions, every setting differentiable."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pybilevel.checks import check_floating, check_range, is_number, is_zero
from pybilevel.optimizers.arithmetic import next_count, no_steps, root
from pybilevel.optimizers.base import Buffers
from pybilevel.optimizers.settings import Setting, check_setting, show, used


class Adagrad:
    """Gradients over the root of the sum of their squares.

        g += weight_decay * w;   n += 1;   s += g^2
        w -= lr / (1 + (n - 1) lr_decay) * g / (sqrt(s) + eps)

    Where s = 0 the derivative of sqrt is taken as 0 (see `arithmetic.root`): hypergradients are finite there, and
    exact: a parameter without gradient has the slope lr / eps.

    Args:
        lr: step size; a number or a tensor (), [steps], [*B, 1] or [*B, steps], or a pytree shaped like w0.
        lr_decay: >= 0, the same forms. The number 0 keeps no count of steps.
        weight_decay: l2 penalty added to the gradient, the same forms.
        initial_accumulator_value: s before the first step: a number >= 0, or a tensor (), which is differentiated too.
        eps: > 0, in the forms of lr.

    Attributes:
        has_lr_decay: whether lr_decay is used: always, except when it is the number 0.
        has_weight_decay: the same of weight_decay.
        starts_above_zero: whether `init` may give more than zeros: initial_accumulator_value is not the number 0.
        buffer_names: what `init` returns, in torch.optim's names. `step` is the count n, (), not differentiated.

    Memory: one buffer of the size of the parameters.

    Raises:
        ValueError: a setting is NaN, infinite, negative, or eps = 0 (values are read on CPU only), or
            initial_accumulator_value has axes.
        TypeError: a setting is neither a number nor a floating tensor nor a pytree of these.

    Source: Duchi, Hazan & Singer 2011; torch.optim.Adagrad.
    """

    name: ClassVar[str] = "adagrad"

    def __init__(
        self,
        lr: Setting = 1e-2,
        lr_decay: Setting = 0.0,
        weight_decay: Setting = 0.0,
        initial_accumulator_value: float | Tensor = 0.0,
        eps: Setting = 1e-10,
    ) -> None:
        check_setting("lr", lr)
        check_setting("lr_decay", lr_decay)
        check_setting("weight_decay", weight_decay)
        _check_initial(initial_accumulator_value)
        check_setting("eps", eps, positive=True)
        self.lr = lr
        self.lr_decay = lr_decay
        self.weight_decay = weight_decay
        self.initial_accumulator_value = initial_accumulator_value
        self.eps = eps
        self.has_lr_decay = not is_zero(lr_decay)
        self.has_weight_decay = not is_zero(weight_decay)
        self.starts_above_zero = not is_zero(initial_accumulator_value)
        self.buffer_names = ("sum", "step") if self.has_lr_decay else ("sum",)

    def settings(self) -> dict[str, Any]:
        """lr, eps, and lr_decay and weight_decay unless they are the number 0."""
        return used(self, ("lr", "eps"), ("lr_decay", "weight_decay"))

    def init(self, w: Tensor) -> Buffers:
        """The initial accumulator, and the count of steps, 0, with lr_decay."""
        start = self.initial_accumulator_value
        if isinstance(start, Tensor):
            start = start.to(device=w.device, dtype=w.dtype)
        total = torch.zeros_like(w) + start
        return (total, no_steps(w)) if self.has_lr_decay else (total,)

    def step(
        self, w: Tensor, g: Tensor, buffers: Buffers, settings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Buffers]:
        """One step for one parameter tensor; see the class for the formula."""
        if self.has_weight_decay:
            g = g + settings["weight_decay"] * w
        total, *counts = buffers
        total = torch.addcmul(total, g, g)
        rate = settings["lr"]
        if self.has_lr_decay:
            rate = rate / (1.0 + counts[0].detach().to(w.dtype) * settings["lr_decay"])
        after = (total, *map(next_count, counts))
        return w - rate * (g / (root(total) + settings["eps"])), after

    def __repr__(self) -> str:
        return show(self, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")


def _check_initial(value: float | Tensor) -> None:
    name = "initial_accumulator_value"
    if not is_number(value):
        check_floating(name, value)
        if isinstance(value, Tensor) and value.ndim:
            raise ValueError(f"{name} has shape {list(value.shape)}: it must be a number or a tensor ()")
    check_range(name, value)
