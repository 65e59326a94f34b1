"""What torch operations leave behind."""

import torch

Held = torch.classes.pybilevel.Held
"""The bytes alive of the storages that torch operations of this thread make, and those of autograd for it, from
`Held(tensors)` to its `end()`; the storages of `tensors`, made before, count too.

`live()`: those of now. It holds nothing alive. Cost: a microsecond an operation."""
