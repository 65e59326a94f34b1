"""The operators of the fused linear problems (csrc/ops/linear.cpp): one call a direction, whatever the number of tasks.

    pybilevel::linear_unroll(x [B,n,d], y [B,n] | [B,n,c], weights? [B,n], l2 [B], w0? [B,D,c], buffers0? [K,B,D,c],
                             setting0? [B,T], ..., setting4? [B,T],
                             query_x? [B,m,d], query_y? [B,m] | [B,m,c], query_weights? [B,m],
                             loss, coordinates, regime, optimizer, classes, bias, scale, query_scale,
                             flags, buffers, start, steps, plan, slots, truncated, keep)
        -> w [B,D,c], buffers [K,B,D,c], outer [B|0], logits [B,m,c], trajectory [B*,tape], status [B]

B tasks, n rows, d features, c classes, D = d + bias, T steps, m query rows (0 without a query set), K = `buffers` of
the optimizer beside w. Settings and flags are those of `optimizers.NativeOptimizer`, in its order; `start` steps were
taken before these (Adam's bias correction counts them). `status` is -1, or the first t for which w_t is not finite.
`outer` is query_scale * sum_i query_weights_i * loss_i. With `keep`, a slot of the trajectory holds the predictions of
its state too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel import _C
from pybilevel.ops.freed import check_alive
from pybilevel.ops.optimizers import OPTIMIZERS, SETTINGS
from pybilevel.schedules import Code, encode

BEFORE = ("x or support", "y or support_y", "weights", "l2", "w0", "the buffers of state")
BEHIND = ("x of outer or query", "y of outer or query_y", "weights of outer")
"""What users call the leading arguments of the schema but for the settings, which are between them."""

TENSORS = len(BEFORE) + SETTINGS + len(BEHIND)
"""How many leading arguments of the schema are tensors, and may have cotangents."""

PACK_BYTES = int(_C.pack_bytes())
"""Bytes of a SIMD pack of the CPU kernels in use."""

_REVERSE = encode(Code.REVERSE)

ZERO, TRAJECTORY, STATUS = slice(0, 4), 4, 5

FORWARD, BACKWARD = (
    torch.ops.pybilevel.linear_unroll.default,
    torch.ops.pybilevel.linear_unroll_backward.default,
)


class LinearResults(NamedTuple):
    """What `linear_unroll` returns; see the module."""

    w: Tensor
    buffers: Tensor
    outer: Tensor
    logits: Tensor
    trajectory: Tensor
    status: Tensor


def linear_unroll(*arguments: Any) -> LinearResults:
    """The whole unroll, and the outer objective where there is a query set; arguments in the order of the schema.

    Differentiable once in every tensor. Cost, a task: in primal coordinates 4 n d c operations a step forward and 8 to
    12 n d c backward; in dual ones 2 n^2 c and 4 to 6 n^2 c, and n^2 d at the ends. Memory: the trajectory.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together.
    """
    if torch.compiler.is_compiling():
        return LinearResults(*FORWARD(*arguments))
    tensors, rest = arguments[:TENSORS], arguments[TENSORS:]
    return LinearResults(*_LinearUnroll.apply(rest, *tensors))  # type: ignore[no-untyped-call]


def linear_scratch_bytes(*arguments: Any) -> int:
    """Bytes of scratch that the same call holds while it runs, all threads together (CPU)."""
    tensors = tuple(
        None if t is None else (t.dtype, *(int(size) for size in t.shape)) for t in arguments[:TENSORS]
    )
    rest = (tuple(a) if isinstance(a, list) else a for a in arguments[TENSORS:])
    size: int = _scratch_of(tensors, arguments[0].device, *rest)
    return size


# torch.compile has no values of operators that return numbers; this one depends on sizes only
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _scratch_of(tensors: tuple[tuple[Any, ...] | None, ...], device: torch.device, *rest: Any) -> int:
    stand_ins = (
        None if t is None else torch.zeros(t[-1], dtype=t[0], device=device).expand(t[1:]) for t in tensors
    )
    return int(torch.ops.pybilevel.linear_scratch_bytes(*stand_ins, *rest))


def lanes(x: Tensor) -> int:
    """How many scalars the kernels pad rows to: a SIMD pack on the CPU, 1 on CUDA."""
    return 1 if x.is_cuda else PACK_BYTES // x.element_size()


def state_size(x: Tensor, classes: int, bias: bool, coordinates: str, regime: str, buffers: int) -> int:
    """Scalars of one state of one task, `buffers` beside w in it, padding included."""
    unit = 1 if regime == "lanes" else lanes(x)
    columns, extra = x.shape[2], classes
    if coordinates == "dual":
        columns, extra = x.shape[1], classes + 1
    elif coordinates == "normal":
        columns, extra = x.shape[2] + int(bias), 0
    return _round_up(classes * _round_up(columns, unit) + extra, unit) * (1 + buffers)


def predictions_size(x: Tensor, classes: int, coordinates: str, regime: str) -> int:
    """Scalars of the predictions of one task's rows, padding included; normal coordinates make none."""
    if coordinates == "normal":
        return 0
    return classes * _round_up(x.shape[1], 1 if regime == "lanes" else lanes(x))


def model_size(x: Tensor, classes: int) -> int:
    """Scalars of one model as the kernels hold it, padding included."""
    unit = lanes(x)
    return _round_up(classes * _round_up(x.shape[2], unit) + classes, unit)


def reversible(steps: int, plan: Sequence[int]) -> bool:
    """Whether the reverse half may follow the forward one: the outer objective then leaves its model's cotangent."""
    return steps == 0 or _REVERSE in plan


def padded_tasks(x: Tensor, regime: str) -> int:
    """How many tasks a trajectory has room for: in the regime "lanes" whole packs."""
    return _round_up(x.shape[0], lanes(x)) if regime == "lanes" else x.shape[0]


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
    plan: Sequence[int],
    slots: int,
    truncated: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    tasks, rows = x.shape[0], x.shape[2] + int(bias)
    queries = 0 if query_x is None else query_x.shape[1]
    state = state_size(x, classes, bias, coordinates, regime, buffers)
    if keep:
        state += predictions_size(x, classes, coordinates, regime)
    left = 0 if query_x is None or not reversible(steps, plan) else model_size(x, classes)
    return (
        x.new_empty(tasks, rows, classes),
        x.new_empty(buffers, tasks, rows, classes),
        x.new_empty(0 if query_x is None else tasks),
        x.new_empty(tasks, queries, classes),
        x.new_empty(padded_tasks(x, regime), (slots + 1) * state + left),
        x.new_empty(tasks, dtype=torch.int32),
    )


@torch.library.register_fake("pybilevel::linear_unroll_backward")  # type: ignore[untyped-decorator]
def _fake_backward(
    w_bar: Tensor | None,
    buffers_bar: Tensor | None,
    outer_bar: Tensor | None,
    logits_bar: Tensor | None,
    w: Tensor,
    logits: Tensor,
    trajectory: Tensor,
    needs: Sequence[bool],
    *arguments: Any,
) -> tuple[Tensor, ...]:
    x = arguments[0]
    return tuple(
        x.new_empty(t.shape) if need and t is not None and t.is_floating_point() else x.new_empty(0)
        for need, t in zip(needs, arguments[:TENSORS], strict=True)
    )


class _OnceOnly(torch.autograd.Function):
    """Passes gradients on, and says in words that they cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *grads: Tensor | None) -> Any:
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "double backward: hypergradients of fused problems cannot be differentiated again. Leave out "
            'create_graph=True, or differentiate the plain loop twice (backend="generic" has the same limit; '
            "pybilevel.engine.oracle has not)."
        )


def _keep(ctx: Any, tensors: Sequence[Tensor | None], rest: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[TRAJECTORY], output[STATUS])
    ctx.save_for_backward(*tensors, output[0], output[3])
    ctx.rest = rest
    ctx.trajectory = output[TRAJECTORY]


def _cotangents(ctx: Any, needs: Sequence[bool], bars: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The cotangents of the tensors, where needed, from those of the results."""
    *tensors, w, logits = ctx.saved_tensors
    if all(bar is None for bar in bars[ZERO]):
        return (None,) * TENSORS
    with torch._C._AutoDispatchBelowAutograd():
        # The reverse half may overwrite the trajectory: it is used once, and made again for a second backward.
        trajectory, ctx.trajectory = ctx.trajectory, None
        if trajectory is None:
            trajectory = FORWARD(*tensors, *ctx.rest)[TRAJECTORY]
        found = BACKWARD(*bars[ZERO], w, logits, trajectory, needs, *tensors, *ctx.rest)
    grads = [grad if need else None for need, grad in zip(needs, found, strict=True)]
    if torch.is_grad_enabled():
        anchor = next(t for t, need in zip(tensors, needs, strict=True) if need)
        grads = list(_OnceOnly.apply(anchor, *grads))  # type: ignore[no-untyped-call]
    return grads


class _LinearUnroll(torch.autograd.Function):
    """The node of a call that is not traced.

    torch.library's bookkeeping costs as much as the operator itself where tasks are few, and grows with the square of
    the schema (0.15 ms a call for these 30 arguments, torch 2.13). So the operators are called below autograd, and
    what is no tensor comes as one argument.
    """

    @staticmethod
    def forward(ctx: Any, rest: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            results = FORWARD(*tensors, *rest)
        _keep(ctx, tensors, rest, results)
        return results

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        _loss, _coordinates, _regime, optimizer, *_ = ctx.rest
        names = (*BEFORE, *OPTIMIZERS[optimizer].settings, *BEHIND)
        check_alive(zip(names, ctx.saved_tensors, strict=False))
        return None, *_cotangents(ctx, ctx.needs_input_grad[1:], bars)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs[:TENSORS], inputs[TENSORS:], output)


def _traced_backward(ctx: Any, *bars: Tensor | None) -> Any:
    # A traced graph may return the trajectory, or reverse it twice: the reverse half gets a copy to overwrite.
    if ctx.trajectory is not None:
        ctx.trajectory = ctx.trajectory.clone()
    return *_cotangents(ctx, ctx.needs_input_grad[:TENSORS], bars), *(None,) * len(ctx.rest)


torch.library.register_autograd("pybilevel::linear_unroll", _traced_backward, setup_context=_setup_context)
