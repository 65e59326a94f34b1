"""The checks of y that all linear problems share: integer classes or floating targets."""

from typing import Any

import torch
from torch import Tensor

from pybilevel.checks import check_class_dtype, check_same, extremes, readable


def check_y(y: Any, x: Tensor, num_classes: int | None) -> int:
    """The number of outputs c, of a y that goes with x: integer classes [*B, n] or floating targets [*B, n, c].

    For integers num_classes, or the largest class + 1 (which reads y, and syncs on CUDA).

    Raises:
        TypeError: y is no tensor, or of another dtype.
        ValueError: shape, device, labels outside [0, c) (values on CPU only), num_classes other than the columns.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}: wrap it in torch.as_tensor")
    if not y.is_floating_point():
        c = _class_count(y, x, num_classes)
        if readable(y):
            _check_classes(y, c)
        return c
    _check_targets(y, x)
    columns = y.shape[-1]
    if num_classes is not None and num_classes != columns:
        raise ValueError(
            f"num_classes is {num_classes} but y has {columns} columns: leave it None for floating targets"
        )
    return columns


def dense_targets(y: Any, x: Tensor, num_classes: int | None) -> tuple[Tensor, int]:
    """y as floating targets [*B, n, c], and c: [*B, n] is one output, integer classes become one-hot rows.

    Raises:
        as `check_y`.
    """
    if isinstance(y, Tensor) and y.is_floating_point() and y.ndim == x.ndim - 1:
        y = y.unsqueeze(-1)
    c = check_y(y, x, num_classes)
    if not y.is_floating_point():
        y = torch.nn.functional.one_hot(y.long(), c).to(x.dtype)
    return y, c


def _check_targets(y: Tensor, x: Tensor) -> None:
    """Raise unless y is a floating [*B, n, c] that goes with x."""
    check_same("y", y, x.dtype, x.device, "x")
    if y.ndim != x.ndim or y.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"y must be [*B, n, c] = {[*x.shape[:-1], 'c']}, got {list(y.shape)} (x is {list(x.shape)})"
        )
    if y.shape[-1] == 0:
        raise ValueError(f"y must have c >= 1 columns, got shape {list(y.shape)}")


def _class_count(y: Tensor, x: Tensor, num_classes: int | None) -> int:
    """c for integer classes y [*B, n]: num_classes, or the largest class + 1 (reads y, which syncs on CUDA)."""
    check_class_dtype("y", y)
    if y.device != x.device:
        raise ValueError(f"y is on {y.device} but x is on {x.device}: move one with .to(device)")
    if y.shape != x.shape[:-1]:
        raise ValueError(f"integer y must be [*B, n] = {list(x.shape[:-1])}, got {list(y.shape)}")
    if num_classes is None:
        if y.numel() == 0:
            raise ValueError("num_classes cannot be inferred from an empty y: pass num_classes")
        num_classes = int(y.max()) + 1
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be an int >= 1, got {num_classes!r}")
    return num_classes


def _check_classes(y: Tensor, num_classes: int) -> None:
    """Raise unless 0 <= y < num_classes (the values of y are known to be readable)."""
    low, high = extremes(y)
    if low < 0 or high >= num_classes:
        offending = low if low < 0 else high
        raise ValueError(
            f"y holds the label {offending}, outside [0, {num_classes}): fix y, or raise num_classes"
        )
