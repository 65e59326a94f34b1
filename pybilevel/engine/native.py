"""Which optimizers and devices have native kernels."""

from pybilevel import _C, optimizers
from pybilevel.ops import OPTIMIZERS
from pybilevel.optimizers import Optimizer

NATIVE = tuple(
    one
    for one in vars(optimizers).values()
    if isinstance(one, type) and getattr(one, "name", None) in OPTIMIZERS
)
"""Their classes."""

CUDA = bool(_C.build_info()["torch_cuda"])
"""Whether this build has kernels for CUDA."""


def has_kernel(optimizer: Optimizer) -> bool:
    """Whether an optimizer has one. A class of one's own may have the name of another, but not its kernel."""
    return type(optimizer) in NATIVE


def counts_steps(optimizer: Optimizer) -> bool:
    """Whether the last buffer of an optimizer is the number of its steps."""
    return "step" in getattr(optimizer, "buffer_names", ())
