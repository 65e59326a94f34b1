"""The objective as one writes it in plain PyTorch, hand-batched over tasks: what the fused one is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def plain_objective(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, lr: Tensor, steps: int, ways: int
) -> tuple[Tensor, Tensor]:
    """Losses [B] and logits [B, m, ways] of linear heads trained on the support, by autograd through the loop.

    Every step is `autograd.grad(..., create_graph=True)` of the sum over tasks, so that the outer gradient flows back
    through all of them; matrices are batched over tasks. Shapes as `pybilevel.ml_objective`.
    """
    w = support.new_zeros(support.shape[0], support.shape[2], ways, requires_grad=True)
    bias = support.new_zeros(support.shape[0], 1, ways, requires_grad=True)
    for _ in range(steps):
        inner = _cross_entropy(torch.baddbmm(bias, support, w), support_y).sum()
        w_grad, bias_grad = torch.autograd.grad(inner, (w, bias), create_graph=True)
        w, bias = w - lr * w_grad, bias - lr * bias_grad
    logits = torch.baddbmm(bias, query, w)
    return _cross_entropy(logits, query_y), logits


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples of each task: [B]."""
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(-1)
    )
