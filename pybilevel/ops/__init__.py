"""Thin calls of the native operators, with their fake and autograd registrations."""

from pybilevel.ops.chain import chain_step
from pybilevel.ops.graph import graph_leaves, plain_graph
from pybilevel.ops.held import Held
from pybilevel.ops.linear import (
    Features,
    lanes,
    linear_scratch_bytes,
    linear_unroll,
    padded_tasks,
    predictions_size,
    state_size,
)
from pybilevel.ops.mlp import activations_size, mlp_scratch_bytes, mlp_unroll, parameters_size
from pybilevel.ops.node import LinearResults
from pybilevel.ops.optimizers import (
    OPTIMIZERS,
    NativeOptimizer,
    optimizer_pullback,
    optimizer_step,
)
from pybilevel.ops.spectral import (
    spectral_edges,
    spectral_native,
    spectral_normal,
    spectral_pairs,
    spectral_power,
)

__all__ = [
    "OPTIMIZERS",
    "Features",
    "Held",
    "LinearResults",
    "NativeOptimizer",
    "activations_size",
    "chain_step",
    "graph_leaves",
    "lanes",
    "linear_scratch_bytes",
    "linear_unroll",
    "mlp_scratch_bytes",
    "mlp_unroll",
    "optimizer_pullback",
    "optimizer_step",
    "padded_tasks",
    "parameters_size",
    "plain_graph",
    "predictions_size",
    "spectral_edges",
    "spectral_native",
    "spectral_normal",
    "spectral_pairs",
    "spectral_power",
    "state_size",
]
