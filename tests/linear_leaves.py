"""The tensors of a case of `linear_cases`: random leaves that ask for gradients, and awkward views of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from linear_cases import Case


class Leaves:
    """Fresh leaves of a case, by name; `settings` are the sizes of its optimizer's settings."""

    def __init__(self, case: Case, settings: Mapping[str, float]) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case.seed)
        self.by_name: dict[str, Tensor] = {}
        scale = 1.0 / case.n if case.reduction == "sum" else 1.0
        self._data("", case.n)
        if case.objective != "state":
            self._data("query_", case.m)
        if case.l2 != "number":
            self._add("l2", case.tasks if case.l2 == "task" else (), low=0.02, high=0.2)
        if case.w0:
            self._add("w0", (*case.tasks, case.d + case.bias, case.c))
        for i, (name, size) in enumerate(settings.items()):
            size *= scale if name == "lr" else 1.0
            shape = setting_shape(case.forms[i % len(case.forms)], case)
            if shape is not None:
                self._add(name, shape, low=0.7 * size, high=1.1 * size)

    def _data(self, prefix: str, rows: int) -> None:
        case = self.case
        self._add(prefix + "x", (*case.tasks, rows, case.d), scale=case.amplitude / case.d**0.5)
        if case.targets == "soft":
            low = 0.0 if case.loss == "softmax" else None
            self._add(prefix + "y", (*case.tasks, rows, case.c), low=low, high=1.0)
        if case.weights != "none":
            self._add(prefix + "weights", (*case.tasks, rows), low=0.1, high=1.5)
            if case.weights == "zeros":
                mask = torch.rand(self.by_name[prefix + "weights"].shape, generator=self.generator) < 0.4
                self.by_name[prefix + "weights"].detach()[mask] = 0.0

    def _add(self, name, shape, *, low=None, high=1.0, scale=1.0) -> None:
        """A leaf from which `arranged` makes a tensor of this shape; uniform from low to high, or normal."""
        stored = stored_shape(self.case.strides, shape)
        # drawn in float32, so that every dtype gets the same numbers
        if low is None:
            values = torch.randn(stored, generator=self.generator) * scale
        else:
            values = torch.rand(stored, generator=self.generator) * (high - low) + low
        self.by_name[name] = values.to(self.case.dtype).requires_grad_()


def setting_shape(form: str, case: Case) -> tuple[int, ...] | None:
    """The shape of a setting in one of `FORMS`; None: a number."""
    shapes = {
        "number": None,
        "scalar": (),
        "step": (case.steps,),
        "task": (*case.tasks, 1) if case.tasks else (),
        "both": (*case.tasks, case.steps),
    }
    return shapes[form]


def stored_shape(strides: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the leaf behind a tensor of a shape."""
    if len(shape) < 2 or strides == "contiguous":
        return shape
    stored = {
        "transposed": (*shape[:-2], shape[-1], shape[-2]),
        "rotated": (*shape[1:], shape[0]),
        "sliced": (*shape[:-1], 2 * shape[-1]),
        "expanded": (min(shape[0], 1), *shape[1:]),
    }
    return stored[strides]


def arranged(strides: str, leaf: Tensor) -> Callable[[tuple[int, ...]], Tensor]:
    """The leaf as a view of a given shape: a transpose, the first axis innermost, every second column, or expanded."""
    ways: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
        "contiguous": lambda shape: leaf,
        "transposed": lambda shape: leaf.mT,
        "rotated": lambda shape: leaf.movedim(-1, 0),
        "sliced": lambda shape: leaf[..., ::2],
        "expanded": lambda shape: leaf.expand(shape),
    }
    return ways["contiguous"] if leaf.ndim < 2 else ways[strides]
