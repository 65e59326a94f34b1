"""What every fused inner problem shares: its data, checks, the regulariser and the reduction."""

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar, Literal, Self

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


class _Kind(ABCMeta):
    """Abstract classes without virtual subclasses: a call asks many times what it is given, and theirs take long."""

    __instancecheck__ = type.__instancecheck__


class Problem(metaclass=_Kind):
    """A model with a row loss and a regulariser, for any number of tasks at once.

        L(w) = (1/n) sum_i weights_i loss(model(w, x_i), y_i) + l2/2 |w|^2        ("sum": without 1/n; w without biases)

    Attributes:
        x: features [*B, n, d]; any strides.
        y: integer classes [*B, n] or floating targets [*B, n, c].
        weights: [*B, n], or None for ones.
        reduction: "mean" or "sum".
        num_classes: c.
        loss: the name of the row loss in the native registry.
        tasks: the leading task dimensions *B.
        n: examples a task.
        d: features, without the bias.
    """

    loss: str
    formative: ClassVar[tuple[str, ...]] = ()
    """What layouts depend on beside the data, their reduction and num_classes: attributes of a subclass."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        num_classes: int,
        weights: Tensor | None,
        l2: float | Tensor,
        reduction: Reduction,
    ) -> None:
        self.x = x
        self.y = y
        self.tasks = tuple(x.shape[:-2])
        self.n, self.d = x.shape[-2:]
        self.num_classes = num_classes
        self.weights = weights
        self.reduction = reduction
        self.regularised = not is_zero(l2)
        self._l2 = _resolve_l2(l2, x)
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if weights is not None:
            _check_weights(weights, x)

    @property
    def l2_given(self) -> float | Tensor:
        """l2 as a number where it was one."""
        return self._l2

    @property
    def l2(self) -> Tensor:
        """() or [*B], of the dtype of x; made of a number when asked for, since most outer problems are never asked."""
        l2 = self._l2
        return l2 if isinstance(l2, Tensor) else torch.full((), l2, dtype=self.x.dtype, device=self.x.device)

    @property
    def penalty(self) -> Tensor | None:
        """l2, or None where it is the number 0."""
        return self.l2 if self.regularised else None

    @property
    def c(self) -> int:
        """Outputs: num_classes."""
        return self.num_classes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that w and the computation have: that of x, float32 for half and bfloat16."""
        return torch.float32 if self.x.dtype in LOW_PRECISION else self.x.dtype

    @property
    def device(self) -> torch.device:
        """The device of x."""
        return self.x.device

    @property
    def scale(self) -> float:
        """What the sum of the row losses is multiplied by: 1/n or 1."""
        return 1.0 / self.n if self.reduction == "mean" else 1.0

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

    def __call__(self, w: Any) -> Tensor:
        """The value of L at parameters w, one a task: [*B]."""
        return self.value(w, self.logits(w, self.x))

    def value(self, w: Any, z: Tensor) -> Tensor:
        """The value of L where z = `logits(w, x)`, [*B, n, c], is known: [*B]."""
        rows = self.row_losses(z)
        if self.weights is not None:
            rows = rows * self.weights
        value = rows.sum(-1) * self.scale
        return value + self.regulariser(w) if self.regularised else value

    @abstractmethod
    def row_losses(self, z: Tensor) -> Tensor:
        """The loss of each example from its predictions: [*B, n, c] -> [*B, n]."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Scalars of the parameters of one task."""

    @property
    @abstractmethod
    def units(self) -> int:
        """Scalars that the model computes of one example, predictions included."""

    @abstractmethod
    def initial(self, w0: Any = None) -> Any:
        """The parameters that a checked w0 stands for, task dimensions included; ValueError if None stands for none."""

    @abstractmethod
    def check_w0(self, w0: Any) -> Any:
        """Initial parameters in the dtype of w, see `initial`; errors name what is wrong."""

    @abstractmethod
    def logits(self, w: Any, x: Tensor) -> Tensor:
        """Predictions of the model: [*B, m, d] -> [*B, m, c]."""

    @abstractmethod
    def regulariser(self, w: Any) -> Tensor:
        """l2/2 |w|^2, without the biases: [*B]."""


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
