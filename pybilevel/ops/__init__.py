"""Thin calls of the native operators, with their fake and autograd registrations."""

from pybilevel.ops.linear import (
    LinearResults,
    lanes,
    linear_scratch_bytes,
    linear_unroll,
    padded_tasks,
    predictions_size,
    state_size,
)
from pybilevel.ops.optimizers import OPTIMIZERS, NativeOptimizer

__all__ = [
    "OPTIMIZERS",
    "LinearResults",
    "NativeOptimizer",
    "lanes",
    "linear_scratch_bytes",
    "linear_unroll",
    "padded_tasks",
    "predictions_size",
    "state_size",
]
