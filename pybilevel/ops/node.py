"""The autograd node of the unrolling operators: one pair of operators, forward and backward, for all fused problems.

Both take the same arguments, the first `TENSORS` of which are tensors, behind those that the module of each documents.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.ops.freed import check_alive
from pybilevel.ops.optimizers import OPTIMIZERS, SETTINGS
from pybilevel.ops.tracing import constant
from pybilevel.ops.twice import double_backward

BEFORE = ("x or support", "y or support_y", "weights", "l2", "w0", "the buffers of state")
BEHIND = ("x of outer or query", "y of outer or query_y", "weights of outer")
"""What users call the leading arguments of the schemas but for the settings, which are between them."""

TENSORS = len(BEFORE) + SETTINGS + len(BEHIND)
"""How many leading arguments of the schemas are tensors, and may have cotangents."""

ZERO, TRAJECTORY, STATUS = slice(0, 4), 4, 5


class LinearResults(NamedTuple):
    """What an unrolling operator returns; see its module."""

    w: Tensor
    buffers: Tensor
    outer: Tensor
    logits: Tensor
    trajectory: Tensor
    status: Tensor


class Operators(NamedTuple):
    """The operators of one kind of problem: both halves, and the size of their scratch memory."""

    forward: Any
    backward: Any
    scratch: Any

    def call(self, arguments: Sequence[Any]) -> LinearResults:
        """The forward half, differentiable once in every tensor; arguments in the order of the schema."""
        if torch.compiler.is_compiling():
            return LinearResults(*self.forward(*arguments))
        tensors, rest = arguments[:TENSORS], arguments[TENSORS:]
        return LinearResults(*_Unroll.apply(self, rest, *tensors))  # type: ignore[no-untyped-call]

    def scratch_bytes(self, arguments: Sequence[Any]) -> int:
        """Bytes of scratch that the same call holds while it runs, all threads together (CPU)."""
        tensors = tuple(
            None if t is None else (t.dtype, *(int(size) for size in t.shape)) for t in arguments[:TENSORS]
        )
        rest = (_without_plan(a) for a in arguments[TENSORS:])
        size: int = _scratch_of(self.scratch, tensors, arguments[0].device, *rest)
        return size


# torch.compile has no values of operators that return numbers; these depend on sizes only
@constant
def _scratch_of(
    operator: Any, tensors: tuple[tuple[Any, ...] | None, ...], device: torch.device, *rest: Any
) -> int:
    stand_ins = (
        None if t is None else torch.zeros(t[-1], dtype=t[0], device=device).expand(t[1:]) for t in tensors
    )
    plan = torch.empty(0, dtype=torch.int32)  # a plan takes no scratch
    return int(operator(*stand_ins, *(plan if a is None else a for a in rest)))


def _without_plan(argument: Any) -> Any:
    """None for the plan, the only tensor among the constants; lists hashable."""
    if isinstance(argument, Tensor):
        return None
    return tuple(argument) if isinstance(argument, list) else argument


def register(name: str, operators: Operators) -> None:
    """Tells torch the shapes of what the backward operator of `name` returns, and how to differentiate the forward."""
    torch.library.register_fake(f"pybilevel::{name}_backward", _fake_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, operators, inputs[:TENSORS], inputs[TENSORS:], output)

    torch.library.register_autograd(f"pybilevel::{name}", _traced_backward, setup_context=setup_context)


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
        raise double_backward()


def _keep(
    ctx: Any,
    operators: Operators,
    tensors: Sequence[Tensor | None],
    rest: Sequence[Any],
    output: Sequence[Tensor],
) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[TRAJECTORY], output[STATUS])
    ctx.save_for_backward(*tensors, output[0], output[3])
    ctx.operators = operators
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
            trajectory = ctx.operators.forward(*tensors, *ctx.rest)[TRAJECTORY]
        found = ctx.operators.backward(*bars[ZERO], w, logits, trajectory, needs, *tensors, *ctx.rest)
    grads = [grad if need else None for need, grad in zip(needs, found, strict=True)]
    if torch.is_grad_enabled():
        anchor = next(t for t, need in zip(tensors, needs, strict=True) if need)
        grads = list(_OnceOnly.apply(anchor, *grads))  # type: ignore[no-untyped-call]
    return grads


class _Unroll(torch.autograd.Function):
    """The node of a call that is not traced.

    torch.library's bookkeeping costs as much as the operator itself where tasks are few, and grows with the square of
    the schema (0.15 ms a call for the 30 arguments of linear problems, torch 2.13). So the operators are called below
    autograd, and what is no tensor comes as one argument.
    """

    @staticmethod
    def forward(ctx: Any, operators: Operators, rest: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            results = operators.forward(*tensors, *rest)
        _keep(ctx, operators, tensors, rest, results)
        return results

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        _loss, _coordinates, _regime, optimizer, *_ = ctx.rest
        names = (*BEFORE, *OPTIMIZERS[optimizer].settings, *BEHIND)
        check_alive(zip(names, ctx.saved_tensors, strict=False))
        return None, None, *_cotangents(ctx, ctx.needs_input_grad[2:], bars)


def _traced_backward(ctx: Any, *bars: Tensor | None) -> Any:
    # A traced graph may return the trajectory, or reverse it twice: the reverse half gets a copy to overwrite.
    if ctx.trajectory is not None:
        ctx.trajectory = ctx.trajectory.clone()
    return *_cotangents(ctx, ctx.needs_input_grad[:TENSORS], bars), *(None,) * len(ctx.rest)
