"""The inner optimizers with native kernels (csrc/optimizers), and what a kernel is told of one."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel import _C


class NativeOptimizer(NamedTuple):
    """What a header tells of its optimizer, in the names of the Python class.

    Attributes:
        settings: in the order of the operators' `setting0`, `setting1`, ...; "" behind the last.
        flags: attributes that are True or False, in the order of the bits of `flags`.
        buffers: (name, the setting or flag without which there is none, or ""), in the operators' order.
        linear: a step is linear in state and gradient, so that coordinates other than primal ones can take it.
    """

    settings: list[str]
    flags: list[str]
    buffers: list[tuple[str, str]]
    linear: bool

    def ordered(self, settings: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The settings as the operators take them, None where the optimizer does not use one."""
        return [settings.get(name) for name in self.settings]

    def kept(self, optimizer: Any, settings: Collection[str]) -> int:
        """How many buffers of the size of w an optimizer with these settings keeps."""
        return sum(
            not needs or needs in settings or (needs in self.flags and bool(getattr(optimizer, needs)))
            for _, needs in self.buffers
        )

    def bits(self, optimizer: Any) -> int:
        """The flags of an optimizer."""
        return sum(bool(getattr(optimizer, name)) << i for i, name in enumerate(self.flags))


optimizer_step = torch.ops.pybilevel.optimizer_step.default
"""One step over all parameter tensors at once (float32 or float64), not differentiable itself:

    optimizer_step(w [leaf], g [leaf], buffers [leaf * K], settings [SETTINGS], optimizer, flags, start, count=None)
        -> w [leaf], then buffers [leaf * K], after the step

All lists hold tensors of the shapes of w; the K buffers of a leaf follow each other. Settings have one value, or are
None; `start` steps were made before, and `count` more, a tensor of one value. Cost: one pass over all; on CUDA one
launch for up to 64 parameters, without a synchronisation. No result depends on the number of threads."""

optimizer_pullback = torch.ops.pybilevel.optimizer_pullback.default
"""Its pullback, the same way, from the cotangents of w and buffers after the step:

    optimizer_pullback(w, g, buffers, w_bar, buffers_bar, settings, optimizer, flags, start, count=None)
        -> cotangents of w [leaf], buffers [leaf * K] and g [leaf] before it, then of the settings, [SETTINGS]
"""

OPTIMIZERS = {name: NativeOptimizer(**row) for name, row in _C.registry()["optimizers"].items()}
"""The rows of the registry by name."""

SETTINGS = len(OPTIMIZERS["sgd"].settings)
"""How many settings an operator takes, whatever the optimizer."""
