"""The grammar of optimizer settings, decided by ndim and never by size.

A *uniform* setting is a number, or a tensor (), [steps], [*B, 1] or [*B, steps]: one value a step and a task. An
*elementwise* one is shaped like the parameters: a pytree like w0 (or one tensor, where w0 is one tensor) whose
leaves are numbers, () or of the parameter's shape, or have a leading steps axis if ndim is one more. Where the
parameters of a callable have tasks, a leaf may leave their axis out: then all tasks share it.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.checks import check_floating, check_range, is_number, is_zero

Setting = float | Tensor | Any  # the Any is a pytree of numbers and tensors shaped like w0


def check_setting(name: str, value: Setting, *, below: float | None = None, positive: bool = False) -> None:
    """Raise unless `value` is a setting whose values are finite, >= 0 (> 0 if `positive`) and (if given) < `below`."""
    limit = inf if below is None else below
    if type(value) is float and (0.0 < value < limit or (value == 0.0 and not positive)):
        return  # the usual way: loops make an optimizer for every call
    if isinstance(value, Tensor) or is_number(value):
        return _check_leaf(name, value, below, positive)
    leaves = pytree.tree_leaves(value)
    if not leaves:
        raise TypeError(f"{name} is empty: {value!r}; give a number, a tensor or a pytree shaped like w0")
    for leaf in leaves:
        _check_leaf(name, leaf, below, positive)


def _check_leaf(name: str, leaf: Any, below: float | None, positive: bool) -> None:
    if isinstance(leaf, Tensor):
        check_floating(name, leaf)
    elif not is_number(leaf):
        raise TypeError(f"{name} must be a number, a floating tensor or a pytree of these, got {leaf!r}")
    check_range(name, leaf, below=below, positive=positive)


def check_pair(name: str, pair: Any, *, below: float) -> tuple[Setting, Setting]:
    """The two settings of `pair`, each checked like `check_setting`. TypeError if it is no tuple or list of two."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair, such as (0.9, 0.999), got {pair!r}")
    for i, value in enumerate(pair):
        check_setting(f"{name}[{i}]", value, below=below)
    return pair[0], pair[1]


def used(optimizer: object, always: Sequence[str], unless_zero: Sequence[str]) -> dict[str, Any]:
    """The settings of an optimizer by name, without those of `unless_zero` that are the number 0: no step uses them."""
    found = {name: getattr(optimizer, name) for name in always}
    for name in unless_zero:
        value = getattr(optimizer, name)
        if not is_zero(value):
            found[name] = value
    return found


def is_elementwise(value: Setting, tasks: Sequence[int]) -> bool:
    """Whether `value` has one value a parameter: it is a container, or a tensor of more than len(tasks) + 1 axes."""
    if is_number(value):
        return False
    return not isinstance(value, Tensor) or value.ndim > len(tasks) + 1


def resolve(
    name: str,
    value: float | Tensor,
    steps: int,
    tasks: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A uniform setting as a tensor that expands to [*tasks, steps]: one value (), or len(tasks) + 1 axes.

    Differentiable in `value`, which is cast to `dtype` (and moved, if it has no axes).

    Raises:
        ValueError: the shape is none of (), [steps], [*B, 1], [*B, steps] (the text gives both), or the device is
            another.
    """
    if not isinstance(value, Tensor):
        return torch.full((), float(value), dtype=dtype, device=device)
    if value.ndim == 0:
        # `to` takes microseconds to do nothing
        right = value.dtype == dtype and value.device == device
        return value if right else value.to(device=device, dtype=dtype)
    _check_device(name, value, device)
    if value.ndim == 1:
        if value.shape[0] != steps:
            raise ValueError(
                f"{name} has length {value.shape[0]} but there are {steps} steps: a 1-D {name} has one value a step"
                + (f"; for one a task give it shape {[*tasks, 1]}" if tasks else "")
            )
        return value.to(dtype).reshape([*[1] * len(tasks), steps])
    shape = list(value.shape)
    if shape not in ([*tasks, 1], [*tasks, steps]):
        raise ValueError(
            f"{name} has shape {shape}: with tasks {list(tasks)} and {steps} steps it must be a number, (), "
            f"[{steps}], {[*tasks, 1]} or {[*tasks, steps]}"
        )
    return value.to(dtype)


def resolve_elementwise(
    name: str, value: Setting, steps: int, w0: Any, shared: bool = False
) -> tuple[Tensor, ...]:
    """An elementwise setting as one tensor a leaf of `w0`: [1, *shape], [1, 1, ...] or [steps, *shape].

    `shared`: the first axis of every leaf of w0 are tasks, and a value without it, [1, *shape], is for all of them.

    Raises:
        ValueError: the structure or a shape differs from w0's (the text gives both), or the device does.
    """
    leaves, spec = pytree.tree_flatten(w0)
    values, value_spec = pytree.tree_flatten(value)
    if spec != value_spec:
        raise ValueError(f"{name} has the structure {value_spec} but w0 has {spec}: make them the same")
    pairs = enumerate(zip(values, leaves, strict=True))
    return tuple(_resolve_leaf(f"{name}[{i}]", value, steps, w, shared) for i, (value, w) in pairs)


def _resolve_leaf(name: str, value: float | Tensor, steps: int, w: Tensor, shared: bool) -> Tensor:
    ones = [1] * (w.ndim + 1)
    if not isinstance(value, Tensor):
        return torch.full(ones, float(value), dtype=w.dtype, device=w.device)
    if value.ndim == 0:
        return value.to(device=w.device, dtype=w.dtype).reshape(ones)
    _check_device(name, value, w.device)
    if value.shape == w.shape or (shared and value.shape == w.shape[1:]):
        return value.to(w.dtype).unsqueeze(0)
    if list(value.shape) == [steps, *w.shape]:
        return value.to(w.dtype)
    raise ValueError(
        f"{name} has shape {list(value.shape)} but its parameter has {list(w.shape)}: it must be a number, (), "
        f"{list(w.shape)} or {[steps, *w.shape]}"
        + (f", or shared by the tasks {list(w.shape[1:])}" if shared else "")
    )


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(
            f"{name} is on {value.device} but w0 is on {device}: move it with .to({str(device)!r})"
        )


def show(optimizer: object, *names: str) -> str:
    """The text of an optimizer: its class and these attributes, tensors by their shapes."""
    shown = ", ".join(f"{name}={_short(getattr(optimizer, name))}" for name in names)
    return f"{type(optimizer).__name__}({shown})"


def _short(value: object) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
