"""What every linear inner problem shares: one matrix, with or without a bias row."""

from typing import Any

import torch
from torch import Tensor

from pybilevel.checks import LOW_PRECISION, check_floating
from pybilevel.problems.problem import Problem, Reduction


class LinearProblem(Problem):
    """A linear model with a row loss, for any number of tasks at once.

        L(W) = (1/n) sum_i weights_i loss(x_i W, y_i) + l2/2 |W|^2        ("sum": without 1/n)

    Attributes:
        bias: whether W has a last row that is added and not regularised: W is [*B, d+1, c], else [*B, d, c].
        The others: see `Problem`.
    """

    formative = ("bias",)

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        num_classes: int,
        weights: Tensor | None,
        l2: float | Tensor,
        bias: bool,
        reduction: Reduction,
    ) -> None:
        self.bias = bool(bias)
        super().__init__(x, y, num_classes, weights, l2, reduction)

    @property
    def rows(self) -> int:
        """Rows of W: d, and one more for the bias."""
        return self.d + int(self.bias)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W: [*B, d, c], or [*B, d+1, c] with bias."""
        return (*self.tasks, self.rows, self.c)

    @property
    def parameters(self) -> int:
        """Scalars of one W."""
        return self.rows * self.c

    @property
    def units(self) -> int:
        """The predictions of one example: c."""
        return self.c

    def initial(self, w0: Tensor | None = None) -> Tensor:
        """w0, or zeros of the shape of W."""
        return w0 if w0 is not None else torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def logits(self, w: Tensor, x: Tensor) -> Tensor:
        """Predictions x W (+ bias): [*B, m, d] -> [*B, m, c]."""
        if not self.bias:
            return x @ w
        return x @ w[..., :-1, :] + w[..., -1:, :]

    def check_w0(self, w0: Any) -> Tensor | None:
        """w0 in the dtype of W; ValueError or TypeError for another shape, device or dtype. None stays: zeros."""
        if w0 is None:
            return None
        check_floating("w0", w0)
        shape = list(self.shape)
        if list(w0.shape) != shape:
            form = "[*B, d+1, c] (the bias is the last row)" if self.bias else "[*B, d, c]"
            raise ValueError(f"w0 has shape {list(w0.shape)} but inner needs {form} = {shape}")
        if w0.device != self.device:
            raise ValueError(f"w0 is on {w0.device} but x is on {self.device}: move one with .to(device)")
        if w0.dtype in LOW_PRECISION and self.dtype == torch.float32:
            return w0.to(torch.float32)  # type: ignore[no-any-return]
        if w0.dtype != self.dtype:
            raise TypeError(f"w0 is {w0.dtype} but x is {self.dtype}: cast one with .to(dtype)")
        return w0  # type: ignore[no-any-return]

    def regulariser(self, w: Tensor) -> Tensor:
        """l2/2 |W|^2, without the bias: [*B, rows, c] -> [*B]."""
        regularised = w[..., :-1, :] if self.bias else w
        return 0.5 * self.l2 * regularised.square().sum((-2, -1))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(tasks={list(self.tasks)}, n={self.n}, d={self.d}, c={self.c}, "
            f"bias={self.bias}, reduction={self.reduction!r}, dtype={self.dtype}, device={self.device})"
        )
