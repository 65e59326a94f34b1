"""The operators of the fused perceptrons (csrc/ops/mlp.cpp): one call a direction, whatever the number of tasks.

    pybilevel::mlp_unroll(the arguments of linear_unroll, activation, sizes)
        -> w [B,1,P], buffers [K,B,1,P], outer [B|0], logits [B,m,c], trajectory [B,tape], status [B]

The arguments and results are those of `pybilevel.ops.linear`, with d = sizes[0], c = sizes[-1] and [1, P] in place of
[D, c]: P scalars a task, layer by layer, each [sizes[l-1] + 1, sizes[l]] with the bias in the last row. coordinates is
"primal", regime "tasks" or "rows" (no difference on CUDA, where a block runs a task), bias True, and w0 is there:
[B, 1, P], or [1, 1, P] for all tasks, whose gradient is then the sum of theirs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pybilevel.ops.linear import Features, lanes, reversible
from pybilevel.ops.node import TENSORS, LinearResults, Operators, register

MLP = Operators(
    torch.ops.pybilevel.mlp_unroll.default,
    torch.ops.pybilevel.mlp_unroll_backward.default,
    torch.ops.pybilevel.mlp_scratch_bytes.default,
)


def mlp_unroll(*arguments: Any) -> LinearResults:
    """The whole unroll, and the outer objective where there is a query set; arguments in the order of the schema.

    Differentiable once in every tensor. Cost, a task: 6 n P operations a step forward and 12 to 18 n P backward.
    Memory: the trajectory.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.
    """
    return MLP.call(arguments)


def mlp_scratch_bytes(*arguments: Any) -> int:
    """Bytes of scratch that the same call holds while it runs, all threads together (CPU)."""
    return MLP.scratch_bytes(arguments)


def parameters_size(sizes: Sequence[int], x: Tensor | Features) -> int:
    """Scalars of the parameters of one task as the kernels hold them, padding included."""
    unit = lanes(x)
    hidden = sum((i + 1) * _round_up(o, unit) for i, o in pairwise(sizes[:-1]))
    return hidden + _round_up(sizes[-1] * _round_up(sizes[-2], unit) + sizes[-1], unit)


def activations_size(sizes: Sequence[int], x: Tensor | Features) -> int:
    """Scalars of what is kept beside a state of one task, padding included.

    Activations and predictions of its rows; on the CPU also the loss's derivatives by the units that a product makes,
    those of all hidden layers but the last.
    """
    unit, rows = lanes(x), x.shape[1]
    units = sum(_round_up(o + 1, unit) for o in sizes[1:-1])
    derivatives = 0 if x.is_cuda else sum(_round_up(o, unit) for o in sizes[1:-2])
    return rows * (units + derivatives) + sizes[-1] * _round_up(rows, unit)


def _round_up(n: int, unit: int) -> int:
    return (n + unit - 1) // unit * unit


@torch.library.register_fake("pybilevel::mlp_unroll")  # type: ignore[untyped-decorator]
def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, query_x = arguments[0], arguments[TENSORS - 3]
    buffers, steps, slots, reversed, keep = (arguments[i] for i in (-9, -7, -5, -4, -3))
    sizes = arguments[-1]
    tasks, queries = x.shape[0], 0 if query_x is None else query_x.shape[1]
    scalars = sum((i + 1) * o for i, o in pairwise(sizes))
    model = parameters_size(sizes, x)
    slot = model * (1 + buffers) + (activations_size(sizes, x) if keep else 0)
    left = 0 if query_x is None or not reversible(steps, reversed) else model
    return (
        x.new_empty(tasks, 1, scalars),
        x.new_empty(buffers, tasks, 1, scalars),
        x.new_empty(0 if query_x is None else tasks),
        x.new_empty(tasks, queries, sizes[-1]),
        x.new_empty(tasks, (slots + 1) * slot + left),
        x.new_empty(tasks, dtype=torch.int32),
    )


register("mlp_unroll", MLP)
