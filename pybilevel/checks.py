"""Small argument checks shared by the vocabulary: whether values can be read cheaply, and what they must satisfy."""

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LOW_PRECISION = (torch.float16, torch.bfloat16)
_FLOATING = (torch.float64, torch.float32, *LOW_PRECISION)
_CLASSES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def readable(tensor: Tensor) -> bool:
    """Whether reading the values of `tensor` is safe and free of a device sync: on CPU, real, not being traced."""
    if torch.compiler.is_compiling() or not tensor.is_cpu or tensor.numel() == 0:
        return False
    return not isinstance(tensor, FakeTensor) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a plain number (bool is not one)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_zero(value: object) -> bool:
    """Whether `value` is the number 0, which leaves its term out; a tensor is none, whatever it holds."""
    return is_number(value) and value == 0


def extremes(tensor: Tensor) -> tuple[int | float, int | float]:
    """The least and the greatest value of a readable tensor; NaN if it holds one."""
    if tensor.numel() == 1:
        value: int | float = tensor.item()
        return value, value
    low, high = torch.aminmax(tensor.detach())
    return low.item(), high.item()


def check_floating(name: str, tensor: Any) -> None:
    """Raise unless `tensor` is a tensor of dtype float64, float32, float16 or bfloat16."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}: wrap it in torch.as_tensor")
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must be floating point, got {tensor.dtype}: call .float() or .double() on it "
            f"(accepted: {_names(_FLOATING)})"
        )


def check_class_dtype(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` has an integer dtype that all operations take."""
    if tensor.dtype not in _CLASSES:
        raise TypeError(
            f"{name} must hold integer classes or floating targets, got {tensor.dtype}: call .long() on it "
            f"(accepted classes: {_names(_CLASSES)})"
        )


def check_data(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` is on "meta"."""
    if tensor.is_meta:
        raise ValueError(f'{name} is on "meta" and has no data: load its values on "cpu" or "cuda" first')


def check_same(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device, reference: str) -> None:
    """Raise unless `tensor` has the dtype and the device of the argument called `reference`."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype} but {reference} is {dtype}: cast one with .to(dtype)")
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device} but {reference} is on {device}: move one with .to(device)"
        )


def check_range(
    name: str, value: "Tensor | float", *, below: float | None = None, positive: bool = False
) -> None:
    """Raise ValueError unless every value is finite, >= 0 (> 0 if `positive`) and (if `below` is given) < `below`.

    Tensors whose values are not cheap to read (CUDA, traced) pass.
    """
    if isinstance(value, Tensor):
        if not readable(value):
            return
        low, high = extremes(value)
    else:
        low = high = float(value)
    limit = float("inf") if below is None else below
    # NaN fails both comparisons
    enough = low > 0 if positive else low >= 0
    if not (enough and high < limit):
        offending = high if enough else low
        least = "> 0" if positive else ">= 0"
        allowed = f"finite and {least}" if below is None else f"in {'(' if positive else '['}0, {below:g})"
        raise ValueError(f"{name} must be {allowed}, got {offending:g}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
