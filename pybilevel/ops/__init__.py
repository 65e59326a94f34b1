"""Thin calls of the native operators, with their fake and autograd registrations."""

from pybilevel.ops.linear import LinearResults, linear_scratch_bytes, linear_unroll, state_size

__all__ = ["LinearResults", "linear_scratch_bytes", "linear_unroll", "state_size"]
