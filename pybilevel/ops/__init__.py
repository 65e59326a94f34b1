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

__all__ = ["LinearResults", "lanes", "linear_scratch_bytes", "linear_unroll", "padded_tasks", "predictions_size", "state_size"]
