"""Least squares: the linear model with half the squared error."""

from torch import Tensor

from pybilevel.problems.base import LinearProblem
from pybilevel.problems.labels import dense_targets
from pybilevel.problems.problem import Reduction, check_x
from pybilevel.problems.row_losses import half_squared_error


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

    loss = "squared"

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
        y, c = dense_targets(y, x, num_classes)
        super().__init__(x, y, c, weights, l2, bias, reduction)

    def row_losses(self, z: Tensor) -> Tensor:
        """Half the squared error of each row: [*B, n, c] -> [*B, n]."""
        return half_squared_error(z, self.y)
