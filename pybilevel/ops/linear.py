"""The operators of the fused linear problems (csrc/ops/linear.cpp): one call a direction, whatever the number of tasks.

    pybilevel::linear_unroll(x [B,n,d], y [B,n] | [B,n,c], weights? [B,n], l2 [B], w0? [B,D,c], buffers0? [K,B,D,c],
                             setting0? [B,T], ..., setting4? [B,T],
                             query_x? [B,m,d], query_y? [B,m] | [B,m,c], query_weights? [B,m],
                             loss, coordinates, regime, optimizer, classes, bias, scale, query_scale,
                             flags, buffers, start, steps, plan [ops], slots, reversed, keep, precision="fp32")
        -> w [B,D,c], buffers [K,B,D,c], outer [B|0], logits [B,m,c], trajectory [B*,tape], status [B]

B tasks, n rows, d features, c classes, D = d + bias, T steps, m query rows (0 without a query set), K = `buffers` of
the optimizer beside w. Settings and flags are those of `optimizers.NativeOptimizer`, in its order; `start` steps were
taken before these (Adam's bias correction counts them). The plan is a tensor of int32 on the CPU, and reverses the last
`reversed` steps; 0: the call cannot be reversed. `status` is -1, or the first t for which w_t is not finite.
`precision` other than "fp32" is for float32 on CUDA. `outer` is query_scale * sum_i query_weights_i * loss_i. With
`keep`, a slot of the trajectory holds the predictions of its state too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel import _C
from pybilevel.ops.node import LinearResults, Operators, register

PACK_BYTES = int(_C.pack_bytes())
"""Bytes of a SIMD pack of the CPU kernels in use."""

PAIR = 2
"""Packs of tasks that the regime "lanes" runs side by side (csrc/cpu/twin.hpp)."""

LINEAR = Operators(
    torch.ops.pybilevel.linear_unroll.default,
    torch.ops.pybilevel.linear_unroll_backward.default,
    torch.ops.pybilevel.linear_scratch_bytes.default,
)


def linear_unroll(*arguments: Any) -> LinearResults:
    """The whole unroll, and the outer objective where there is a query set; arguments in the order of the schema.

    Differentiable once in every tensor. Cost, a task: in primal coordinates 4 n d c operations a step forward and 8 to
    12 n d c backward; in dual ones 2 n^2 c and 4 to 6 n^2 c, and n^2 d at the ends. Memory: the trajectory.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.
    """
    return LINEAR.call(arguments)


def linear_scratch_bytes(*arguments: Any) -> int:
    """Bytes of scratch that the same call holds while it runs, all threads together (CPU)."""
    return LINEAR.scratch_bytes(arguments)


class Features(NamedTuple):
    """What sizes depend on of the features x [B, n, d], whose like a tensor may take the place of."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    is_cuda: bool

    def element_size(self) -> int:
        """Bytes of a scalar."""
        return self.dtype.itemsize


def lanes(x: Tensor | Features) -> int:
    """How many scalars the kernels pad rows to: a SIMD pack on the CPU, 1 on CUDA."""
    return 1 if x.is_cuda else PACK_BYTES // x.element_size()


def state_size(
    x: Tensor | Features, classes: int, bias: bool, coordinates: str, regime: str, buffers: int
) -> int:
    """Scalars of one state of one task, `buffers` beside w in it, padding included."""
    unit = 1 if regime == "lanes" else lanes(x)
    columns, extra = x.shape[2], classes
    if coordinates == "dual":
        columns, extra = x.shape[1], classes + 1
    elif coordinates == "normal":
        columns, extra = x.shape[2] + int(bias), 0
    return _round_up(classes * _round_up(columns, unit) + extra, unit) * (1 + buffers)


def predictions_size(x: Tensor | Features, classes: int, coordinates: str, regime: str) -> int:
    """Scalars of the predictions of one task's rows, padding included; normal coordinates make none."""
    if coordinates == "normal":
        return 0
    return classes * _round_up(x.shape[1], 1 if regime == "lanes" else lanes(x))


def left_size(x: Tensor | Features, classes: int, queries: int, regime: str) -> int:
    """Scalars behind the states of one task, left for the reverse half: a model's cotangent and the residuals of the
    outer objective, padding included, and in the regime "lanes" the Gram matrix.
    """
    unit = lanes(x)
    model = _round_up(classes * _round_up(x.shape[2], unit) + classes, unit)
    gram = x.shape[1] ** 2 if regime == "lanes" else 0
    return model + classes * _round_up(queries, unit) + gram


def reversible(steps: int, reversed: int) -> bool:
    """Whether the reverse half may follow the forward one: the outer objective then leaves something."""
    return steps == 0 or reversed > 0


def padded_tasks(x: Tensor | Features, regime: str) -> int:
    """How many tasks a trajectory has room for: in the regime "lanes" whole pairs of packs."""
    return _round_up(x.shape[0], PAIR * lanes(x)) if regime == "lanes" else x.shape[0]


def _round_up(n: int, unit: int) -> int:
    return (n + unit - 1) // unit * unit


@torch.library.register_fake("pybilevel::linear_unroll")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    l2: Tensor,
    w0: Tensor | None,
    buffers0: Tensor | None,
    setting0: Tensor | None,
    setting1: Tensor | None,
    setting2: Tensor | None,
    setting3: Tensor | None,
    setting4: Tensor | None,
    query_x: Tensor | None,
    query_y: Tensor | None,
    query_weights: Tensor | None,
    loss: str,
    coordinates: str,
    regime: str,
    optimizer: str,
    classes: int,
    bias: bool,
    scale: float,
    query_scale: float,
    flags: int,
    buffers: int,
    start: int,
    steps: int,
    plan: Tensor,
    slots: int,
    reversed: int,
    keep: bool,
    precision: str = "fp32",
) -> tuple[Tensor, ...]:
    tasks, rows = x.shape[0], x.shape[2] + int(bias)
    queries = 0 if query_x is None else query_x.shape[1]
    state = state_size(x, classes, bias, coordinates, regime, buffers)
    if keep:
        state += predictions_size(x, classes, coordinates, regime)
    left = 0 if query_x is None or not reversible(steps, reversed) else left_size(x, classes, queries, regime)
    return (
        x.new_empty(tasks, rows, classes),
        x.new_empty(buffers, tasks, rows, classes),
        x.new_empty(0 if query_x is None else tasks),
        x.new_empty(tasks, queries, classes),
        x.new_empty(padded_tasks(x, regime), (slots + 1) * state + left),
        x.new_empty(tasks, dtype=torch.int32),
    )


register("linear_unroll", LINEAR)
