"""Softmax regression: the linear classifier with the cross entropy."""

from torch import Tensor

from pybilevel.problems.base import LinearProblem
from pybilevel.problems.labels import check_y
from pybilevel.problems.problem import Reduction, check_x
from pybilevel.problems.row_losses import cross_entropy


class SoftmaxRegression(LinearProblem):
    """Cross entropy of a linear model.

        L(W) = (1/n) sum_i weights_i CE(x_i W, y_i) + l2/2 |W|^2,   CE(z, y) = - sum_k y_k log softmax(z)_k

    Args:
        x: features [*B, n, d]; leading dimensions are tasks.
        y: integer classes [*B, n], or soft labels [*B, n, c] (rows need not sum to one; they may carry gradients).
        num_classes: c; None: from y (the largest integer class + 1, which reads y).
        weights: example weights [*B, n], >= 0; None: ones. Weight 0 pads ragged tasks.
        l2: regularisation, a number, () or [*B], >= 0; the bias is not regularised.
        bias: append a bias row to W.
        reduction: "mean" (1/n) or "sum".

    Raises:
        ValueError: shapes, devices, labels outside [0, c), negative or non-finite weights or l2 (values on CPU only).
        TypeError: dtypes that are not floating, or that differ from that of x.
    """

    loss = "softmax"

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
        super().__init__(x, y, check_y(y, x, num_classes), weights, l2, bias, reduction)

    def row_losses(self, z: Tensor) -> Tensor:
        """The cross entropy of each row: [*B, n, c] -> [*B, n]."""
        return cross_entropy(z, self.y)
