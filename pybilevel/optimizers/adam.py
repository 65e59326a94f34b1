"""Adam: torch.optim.Adam's conventions, every setting differentiable."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pybilevel.checks import is_zero
from pybilevel.optimizers.arithmetic import (
    bias_correction,
    complement,
    mix_square,
    next_count,
    no_steps,
    root,
)
from pybilevel.optimizers.base import Buffers
from pybilevel.optimizers.settings import Setting, check_pair, check_setting, show, used


class Adam:
    """Adaptive moments, with weight decay added to the gradient.

        g += weight_decay * w;   n += 1
        m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
        w -= lr / (1 - beta1^n) * m / (sqrt(v) / sqrt(1 - beta2^n) + eps)        amsgrad: the largest v so far for v

    Where v = 0 the derivative of sqrt is taken as 0 (see `arithmetic.root`): hypergradients are finite there, and at
    the first step exact, where a parameter without gradient has the slope lr / eps.

    Args:
        lr: step size; a number or a tensor (), [steps], [*B, 1] or [*B, steps], or a pytree shaped like w0.
        betas: the pair (beta1, beta2) of decays in [0, 1), each in the same forms.
        eps: > 0, the same forms.
        weight_decay: l2 penalty added to the gradient, the same forms.
        amsgrad: divide by the largest v so far; where two are equal, its derivative is half of each.

    Attributes:
        has_weight_decay: whether weight_decay is used: always, except when it is the number 0.
        buffer_names: what `init` returns, in torch.optim's names. `step` is the count n, (), not differentiated.

    Memory: two buffers (three with amsgrad) of the size of the parameters, and one number a parameter tensor.

    Raises:
        ValueError: a setting is NaN, infinite, negative, a beta >= 1, or eps = 0 (values are read on CPU only).
        TypeError: a setting is neither a number nor a floating tensor nor a pytree of these.

    Source: Kingma & Ba 2015; Reddi, Kale & Kumar 2018 (amsgrad); torch.optim.Adam.
    """

    name: ClassVar[str] = "adam"
    decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the parameters instead of the gradient."""

    def __init__(
        self,
        lr: Setting = 1e-3,
        betas: tuple[Setting, Setting] = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        amsgrad: bool = False,
    ) -> None:
        check_setting("lr", lr)
        self.beta1, self.beta2 = check_pair("betas", betas, below=1.0)
        check_setting("eps", eps, positive=True)
        check_setting("weight_decay", weight_decay)
        self.lr = lr
        self.eps = eps
        self.weight_decay = weight_decay
        self.amsgrad = bool(amsgrad)
        self.has_weight_decay = not is_zero(weight_decay)
        largest = ("max_exp_avg_sq",) if self.amsgrad else ()
        self.buffer_names = ("exp_avg", "exp_avg_sq", *largest, "step")

    def settings(self) -> dict[str, Any]:
        """lr, beta1, beta2, eps, and weight_decay unless that is the number 0."""
        return used(self, ("lr", "beta1", "beta2", "eps"), ("weight_decay",))

    def init(self, w: Tensor) -> Buffers:
        """Zero moments, and the count of steps, 0."""
        return (*(torch.zeros_like(w) for _ in self.buffer_names[:-1]), no_steps(w))

    def step(
        self, w: Tensor, g: Tensor, buffers: Buffers, settings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Buffers]:
        """One step for one parameter tensor; see the class for the formula."""
        if self.has_weight_decay:
            decay = settings["weight_decay"]
            w, g = (w - settings["lr"] * decay * w, g) if self.decoupled else (w, g + decay * w)
        mean, square, *largest, count = buffers
        beta1, beta2 = settings["beta1"], settings["beta2"]
        count = next_count(count)
        mean = torch.lerp(mean, g, complement(self.beta1, beta1))
        square = mix_square(square, beta2, complement(self.beta2, beta2), g)
        largest = [torch.maximum(old, square) for old in largest]
        scale = bias_correction(self.beta2, beta2, count) ** 0.5
        rate = settings["lr"] / bias_correction(self.beta1, beta1, count)
        size = root(largest[0] if largest else square) / scale + settings["eps"]
        return w - rate * (mean / size), (mean, square, *largest, count)

    def __repr__(self) -> str:
        return show(self, "lr", "beta1", "beta2", "eps", "weight_decay", "amsgrad")
