"""AdamW: torch.optim.AdamW's conventions, every setting differentiable."""

from typing import ClassVar

from pybilevel.optimizers.adam import Adam
from pybilevel.optimizers.settings import Setting


class AdamW(Adam):
    """Adam with decoupled weight decay: w -= lr * weight_decay * w first, then `Adam`'s step on the plain gradient.

    Args, memory and errors are those of `Adam`; `weight_decay` is 0.01 unless given.

    Source: Loshchilov & Hutter 2019; torch.optim.AdamW.
    """

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True

    def __init__(
        self,
        lr: Setting = 1e-3,
        betas: tuple[Setting, Setting] = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, amsgrad)
