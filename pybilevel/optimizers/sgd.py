"""Gradient descent with momentum: torch.optim.SGD's conventions, every setting differentiable."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pybilevel.checks import is_zero
from pybilevel.optimizers.base import Buffers
from pybilevel.optimizers.settings import Setting, check_setting, show, used


class SGD:
    """Gradient descent, heavy-ball momentum or Nesterov's, with weight decay.

        g += weight_decay * w;   v = momentum * v + g;   w -= lr * (g + momentum * v if nesterov else v)

    Args:
        lr: step size; a number or a tensor (), [steps], [*B, 1] or [*B, steps], or a pytree shaped like w0.
        momentum: in [0, 1), the same forms. The number 0 keeps no buffer.
        nesterov: use Nesterov's form; needs a momentum.
        weight_decay: l2 penalty added to the gradient, the same forms.

    Attributes:
        has_momentum: whether a velocity is kept: always, except when momentum is the number 0.
        has_weight_decay: the same of weight_decay.
        buffer_names: what `init` returns, in torch.optim's names.

    Raises:
        ValueError: a setting is NaN, infinite, negative, or a momentum is >= 1 (values are read on CPU only).
        TypeError: a setting is neither a number nor a floating tensor nor a pytree of these.

    Source: Polyak 1964; Sutskever et al. 2013; torch.optim.SGD.
    """

    name: ClassVar[str] = "sgd"

    def __init__(
        self, lr: Setting, momentum: Setting = 0.0, nesterov: bool = False, weight_decay: Setting = 0.0
    ) -> None:
        check_setting("lr", lr)
        check_setting("momentum", momentum, below=1.0)
        check_setting("weight_decay", weight_decay)
        self.lr = lr
        self.momentum = momentum
        self.nesterov = bool(nesterov)
        self.weight_decay = weight_decay
        self.has_momentum = not is_zero(momentum)
        self.has_weight_decay = not is_zero(weight_decay)
        self.buffer_names = ("momentum_buffer",) if self.has_momentum else ()
        if self.nesterov and not self.has_momentum:
            raise ValueError(
                "nesterov=True needs a momentum, got momentum=0: pass momentum=0.9, or nesterov=False"
            )

    def settings(self) -> dict[str, Any]:
        """lr, momentum, weight_decay; without the last two where they are the number 0, which `step` does not use."""
        return used(self, ("lr",), ("momentum", "weight_decay"))

    def init(self, w: Tensor) -> Buffers:
        """A zero velocity, or nothing without momentum."""
        return (torch.zeros_like(w),) if self.has_momentum else ()

    def step(
        self, w: Tensor, g: Tensor, buffers: Buffers, settings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Buffers]:
        """One step for one parameter tensor; see the class for the formula."""
        if self.has_weight_decay:
            g = g + settings["weight_decay"] * w
        if not self.has_momentum:
            return w - settings["lr"] * g, ()
        velocity = settings["momentum"] * buffers[0] + g
        direction = g + settings["momentum"] * velocity if self.nesterov else velocity
        return w - settings["lr"] * direction, (velocity,)

    def __repr__(self) -> str:
        return show(self, "lr", "momentum", "nesterov", "weight_decay")
