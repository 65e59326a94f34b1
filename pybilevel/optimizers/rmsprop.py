"""RMSprop: torch.optim.RMSprop's conventions, every setting differentiable."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pybilevel.checks import is_zero
from pybilevel.optimizers.arithmetic import complement, mix_square, root
from pybilevel.optimizers.base import Buffers
from pybilevel.optimizers.settings import Setting, check_setting, show, used


class RMSprop:
    """Gradients over the root of their mean square, with momentum.

        g += weight_decay * w;   v = alpha v + (1 - alpha) g^2;   a = alpha a + (1 - alpha) g  (centered)
        u = g / (sqrt(v - a^2 if centered else v) + eps);   b = momentum b + u;   w -= lr b     without momentum: b = u

    Where the root is that of 0, its derivative is taken as 0 (see `arithmetic.root`): hypergradients are finite there.
    Rounding may leave v - a^2 below 0, which counts as 0; torch.optim then gives NaN.

    Args:
        lr: step size; a number or a tensor (), [steps], [*B, 1] or [*B, steps], or a pytree shaped like w0.
        alpha: decay of the mean square, in [0, 1), the same forms.
        eps: > 0, the same forms.
        weight_decay: l2 penalty added to the gradient, the same forms.
        momentum: in [0, 1), the same forms. The number 0 keeps no buffer.
        centered: subtract the square of the mean gradient.

    Attributes:
        has_momentum: whether a momentum buffer is kept: always, except when momentum is the number 0.
        has_weight_decay: the same of weight_decay.
        buffer_names: what `init` returns, in torch.optim's names.

    Memory: one to three buffers of the size of the parameters.

    Raises:
        ValueError: a setting is NaN, infinite, negative, alpha or momentum >= 1, or eps = 0 (values are read on CPU
            only).
        TypeError: a setting is neither a number nor a floating tensor nor a pytree of these.

    Source: Tieleman & Hinton 2012; Graves 2013 (centered); torch.optim.RMSprop.
    """

    name: ClassVar[str] = "rmsprop"

    def __init__(
        self,
        lr: Setting = 1e-2,
        alpha: Setting = 0.99,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        momentum: Setting = 0.0,
        centered: bool = False,
    ) -> None:
        check_setting("lr", lr)
        check_setting("alpha", alpha, below=1.0)
        check_setting("eps", eps, positive=True)
        check_setting("weight_decay", weight_decay)
        check_setting("momentum", momentum, below=1.0)
        self.lr = lr
        self.alpha = alpha
        self.eps = eps
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.centered = bool(centered)
        self.has_momentum = not is_zero(momentum)
        self.has_weight_decay = not is_zero(weight_decay)
        kept = {"square_avg": True, "grad_avg": self.centered, "momentum_buffer": self.has_momentum}
        self.buffer_names = tuple(name for name, wanted in kept.items() if wanted)

    def settings(self) -> dict[str, Any]:
        """lr, alpha, eps, and weight_decay and momentum unless they are the number 0."""
        return used(self, ("lr", "alpha", "eps"), ("weight_decay", "momentum"))

    def init(self, w: Tensor) -> Buffers:
        """Zeros."""
        return tuple(torch.zeros_like(w) for _ in self.buffer_names)

    def step(
        self, w: Tensor, g: Tensor, buffers: Buffers, settings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Buffers]:
        """One step for one parameter tensor; see the class for the formula."""
        if self.has_weight_decay:
            g = g + settings["weight_decay"] * w
        before = dict(zip(self.buffer_names, buffers, strict=True))
        alpha, weight = settings["alpha"], complement(self.alpha, settings["alpha"])
        square = spread = mix_square(before["square_avg"], alpha, weight, g)
        after = {"square_avg": square}
        if self.centered:
            mean = after["grad_avg"] = torch.lerp(before["grad_avg"], g, weight)
            spread = square - mean * mean
        direction = g / (root(spread) + settings["eps"])
        if self.has_momentum:
            direction = settings["momentum"] * before["momentum_buffer"] + direction
            after["momentum_buffer"] = direction
        return w - settings["lr"] * direction, tuple(after.values())

    def __repr__(self) -> str:
        return show(self, "lr", "alpha", "eps", "weight_decay", "momentum", "centered")
