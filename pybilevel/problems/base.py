"""What every linear inner problem shares: shapes, checks, the regulariser and the reduction."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from pybilevel.checks import (
    LOW_PRECISION,
    check_data,
    check_floating,
    check_range,
    check_same,
    is_number,
    is_zero,
)

Reduction = Literal["mean", "sum"]


class LinearProblem(ABC):
    """A linear model with a row loss, for any number of tasks at once.

        L(W) = (1/n) sum_i weights_i loss(x_i W, y_i) + l2/2 |W|^2        ("sum": without 1/n)

    Attributes:
        x: features [*B, n, d]; any strides.
        y: integer classes [*B, n] or floating targets [*B, n, c].
        weights: [*B, n], or None for ones.
        bias: whether W has a last row that is added and not regularised: W is [*B, d+1, c], else [*B, d, c].
        reduction: "mean" or "sum".
        num_classes: c.
        loss: the name of the row loss in the native registry.
        tasks: the leading task dimensions *B.
        n: examples a task.
        d: features, without the bias.
    """

    loss: ClassVar[str]

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
        self.x = x
        self.y = y
        self.tasks = tuple(x.shape[:-2])
        self.n, self.d = x.shape[-2:]
        self.num_classes = num_classes
        self.weights = weights
        self.bias = bool(bias)
        self.reduction = reduction
        self.regularised = not is_zero(l2)
        self._l2 = _resolve_l2(l2, x)
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if weights is not None:
            _check_weights(weights, x)

    @property
    def l2(self) -> Tensor:
        """() or [*B], of the dtype of x; made of a number when asked for, since most outer problems are never asked."""
        l2 = self._l2
        return l2 if isinstance(l2, Tensor) else torch.full((), l2, dtype=self.x.dtype, device=self.x.device)

    @property
    def c(self) -> int:
        """Outputs: num_classes."""
        return self.num_classes

    @property
    def rows(self) -> int:
        """Rows of W: d, and one more for the bias."""
        return self.d + int(self.bias)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that W and the computation have: that of x, float32 for half and bfloat16."""
        return torch.float32 if self.x.dtype in LOW_PRECISION else self.x.dtype

    @property
    def device(self) -> torch.device:
        """The device of x."""
        return self.x.device

    @property
    def scale(self) -> float:
        """What the sum of the row losses is multiplied by: 1/n or 1."""
        return 1.0 / self.n if self.reduction == "mean" else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W: [*B, d, c], or [*B, d+1, c] with bias."""
        return (*self.tasks, self.rows, self.c)

    def tensors(self) -> dict[str, Tensor]:
        """The floating tensors that may carry gradients, by attribute name: x, soft y, weights, l2."""
        found = {"x": self.x}
        if self.y.is_floating_point():
            found["y"] = self.y
        if self.weights is not None:
            found["weights"] = self.weights
        found["l2"] = self.l2
        return found

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The same problem on other tensors (a subset of `tensors()`); shapes are not checked again."""
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone.__dict__.update({"_l2" if name == "l2" else name: t for name, t in tensors.items()})
        return clone

    def take(self, rows: Tensor) -> Self:
        """The same problem on some of its examples, by their indices [*B, b]: n is b, and a mean is over them."""

        def gather(tensor: Tensor, axis: int) -> Tensor:
            index = rows if axis == -1 else rows.unsqueeze(-1)
            return torch.take_along_dim(tensor, index, axis)

        y = gather(self.y, -2) if self.y.is_floating_point() else gather(self.y, -1)
        found = {"x": gather(self.x, -2), "y": y}
        if self.weights is not None:
            found["weights"] = gather(self.weights, -1)
        clone = self.with_tensors(found)
        clone.n = rows.shape[-1]
        return clone

    def promoted(self) -> Self:
        """Itself in float32 or float64; half and bfloat16 tensors are cast up, differentiably."""
        if self.x.dtype not in LOW_PRECISION:
            return self
        return self.with_tensors({name: tensor.to(self.dtype) for name, tensor in self.tensors().items()})

    def initial(self) -> Tensor:
        """Zeros of the shape of W."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def logits(self, w: Tensor, x: Tensor) -> Tensor:
        """Predictions x W (+ bias): [*B, m, d] -> [*B, m, c]."""
        if not self.bias:
            return x @ w
        return x @ w[..., :-1, :] + w[..., -1:, :]

    def __call__(self, w: Tensor) -> Tensor:
        """The value of L, one a task: [*B, rows, c] -> [*B]."""
        return self.value(w, self.logits(w, self.x))

    def value(self, w: Tensor, z: Tensor) -> Tensor:
        """The value of L where z = `logits(w, x)` is known: [*B, rows, c], [*B, n, c] -> [*B]."""
        rows = self.row_losses(z)
        if self.weights is not None:
            rows = rows * self.weights
        value = rows.sum(-1) * self.scale
        return value + self.regulariser(w) if self.regularised else value

    def regulariser(self, w: Tensor) -> Tensor:
        """l2/2 |W|^2, without the bias: [*B, rows, c] -> [*B]."""
        regularised = w[..., :-1, :] if self.bias else w
        return 0.5 * self.l2 * regularised.square().sum((-2, -1))

    @abstractmethod
    def row_losses(self, z: Tensor) -> Tensor:
        """The loss of each example from its predictions: [*B, n, c] -> [*B, n]."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(tasks={list(self.tasks)}, n={self.n}, d={self.d}, c={self.c}, "
            f"bias={self.bias}, reduction={self.reduction!r}, dtype={self.dtype}, device={self.device})"
        )


def check_x(x: Tensor) -> None:
    """Raise unless x is a floating [*B, n, d] with n, d >= 1."""
    check_floating("x", x)
    check_data("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must be [*B, n, d], got shape {list(x.shape)}: add the missing axes")
    if x.shape[-2] == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have n >= 1 examples and d >= 1 features, got [*B, n, d] = {list(x.shape)}")


def _resolve_l2(l2: float | Tensor, x: Tensor) -> float | Tensor:
    if not isinstance(l2, Tensor):
        if not is_number(l2):
            raise TypeError(f"l2 must be a number or a tensor () or [*B], got {type(l2).__name__}")
        check_range("l2", l2)
        return float(l2)
    check_floating("l2", l2)
    check_range("l2", l2)
    if l2.ndim == 0:
        return l2.to(device=x.device, dtype=x.dtype)
    check_same("l2", l2, x.dtype, x.device, "x")
    if l2.shape != x.shape[:-2]:
        raise ValueError(f"l2 must be () or [*B] = {list(x.shape[:-2])}, got {list(l2.shape)}")
    return l2


def _check_weights(weights: Tensor, x: Tensor) -> None:
    check_floating("weights", weights)
    check_same("weights", weights, x.dtype, x.device, "x")
    if weights.shape != x.shape[:-1]:
        raise ValueError(f"weights must be [*B, n] = {list(x.shape[:-1])}, got {list(weights.shape)}")
    check_range("weights", weights)
