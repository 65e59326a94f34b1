"""Least squares: the linear model with half the squared error."""

from typing import ClassVar

import torch
from torch import Tensor

from pybilevel.checks import readable
from pybilevel.problems.base import (
    LinearProblem,
    Reduction,
    check_classes,
    check_targets,
    check_x,
    class_count,
)


class LeastSquares(LinearProblem):
    """Half squared error of a linear model, summed over outputs.

        L(W) = (1/n) sum_i weights_i |x_i W - y_i|^2 / 2 + l2/2 |W|^2

    Args:
        x: features [*B, n, d]; leading dimensions are tasks.
        y: targets [*B, n, c], or [*B, n] (c = 1), or integer classes [*B, n], which become one-hot targets.
        num_classes: c for integer classes; None: the largest + 1.
        weights: example weights [*B, n], >= 0; None: ones.
        l2: regularisation, a number, () or [*B], >= 0; the bias is not regularised.
        bias: append a bias row to W.
        reduction: "mean" (1/n) or "sum".

    Raises:
        ValueError: shapes, devices, negative or non-finite weights or l2 (values are read on CPU only).
        TypeError: dtypes that are not floating, or that differ from that of x.
    """

    loss: ClassVar[str] = "squared"

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        num_classes: int | None = None,
        weights: Tensor | None = None,
        l2: float | Tensor = 0.0,
        bias: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        check_x(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}: wrap it in torch.as_tensor")
        if not y.is_floating_point():
            num_classes = class_count(y, x, num_classes)
            if readable(y):
                check_classes(y, num_classes)
            y = torch.nn.functional.one_hot(y.long(), num_classes).to(x.dtype)
        elif y.ndim == x.ndim - 1:
            y = y.unsqueeze(-1)
        check_targets(y, x)
        if num_classes is not None and num_classes != y.shape[-1]:
            raise ValueError(f"num_classes is {num_classes} but y has {y.shape[-1]} columns")
        super().__init__(x, y, y.shape[-1], weights, l2, bias, reduction)

    def row_losses(self, z: Tensor) -> Tensor:
        """Half the squared error of each row: [*B, n, c] -> [*B, n]."""
        return 0.5 * (z - self.y).square().sum(-1)
