"""The row losses in plain PyTorch: the loss of each example from its predictions, [*B, n, c] -> [*B, n]."""

import torch
from torch import Tensor


def half_squared_error(z: Tensor, y: Tensor) -> Tensor:
    """|z - y|^2 / 2, for y [*B, n, c]."""
    return 0.5 * (z - y).square().sum(-1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """- sum_k y_k log softmax(z)_k, for integer classes y [*B, n] or targets [*B, n, c] that need not sum to one."""
    log_p = torch.log_softmax(z, -1)
    if y.is_floating_point():
        return -(y * log_p).sum(-1)
    return -log_p.gather(-1, y.long().unsqueeze(-1)).squeeze(-1)
