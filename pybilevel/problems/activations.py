"""The activations of `pb.MLP` in plain PyTorch, by their names in the native registry."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["relu", "tanh", "sigmoid", "softplus", "elu"]


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), without the cut at 20 that torch has, which is 2e-9 off."""
    return functional.softplus(z, threshold=40.0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
    "elu": functional.elu,
}
