"""The autograd nodes of the unrolling operators: one pair of operators, forward and backward, for all fused problems.

Both take the same arguments, the first `TENSORS` of which are tensors, behind those that the module of each documents.

A call that is traced has the node that `register` gives the forward operator. Any other has one in C++:

    pybilevel::unroll_node(tensors? [TENSORS], w0 [leaf], names, scales, numbers, plan, sizes)
        -> as the operator returns, and the first bad step of all tasks, or -1

    pybilevel::remember_unroll(tensors, w0, family, most, names, scales, numbers, plan, sizes)
    pybilevel::unroll_again(tensors, w0, family, look, objective)
        -> w, buffers, outer, logits, the first bad step, whether a tensor has a graph of its own: of a call whose
           tensors look like those of an earlier one and whose family, a number for all that is no tensor, is the same;
           if none is, or `look` finds a class outside [0, c), no tensors, and -2. Of an `objective` no w and buffers
    pybilevel::forget_unrolls(); pybilevel::remembered_unrolls() -> how many forms of tensors are kept

It takes tensors as the caller has them: data and initial models with any task dimensions *B; l2 () or [*B], None for
the number 0; settings expandable to [*B, T]; labels of any integer type; and w0 beside the others, of a perceptron the
leaves W_1, b_1, ... one by one. w, buffers, outer and logits have *B too (not w and buffers of a perceptron). The other
arguments are those of the operator by their types, since torch parses a few lists faster than 17 arguments.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.ops.freed import watch
from pybilevel.ops.optimizers import OPTIMIZERS, SETTINGS
from pybilevel.ops.tracing import constant
from pybilevel.ops.twice import double_backward

BEFORE = ("x or support", "y or support_y", "weights", "l2", "w0", "the buffers of state")
BEHIND = ("x of outer or query", "y of outer or query_y", "weights of outer")
"""What users call the leading arguments of the schemas but for the settings, which are between them."""

TENSORS = len(BEFORE) + SETTINGS + len(BEHIND)
"""How many leading arguments of the schemas are tensors, and may have cotangents."""

W0, OPTIMIZER = 4, 3
"""The places of w0 among the tensors and of the optimizer's name among the names."""

NOT_AGAIN = -2
"""The number for the first bad step, where `unroll_again` has run nothing."""

ZERO, TRAJECTORY, STATUS = slice(0, 4), 4, 5


class LinearResults(NamedTuple):
    """What an unrolling operator returns, see its module; and the least of `status` that is none of -1, if any.

    That is looked for on the CPU, where nothing is traced.
    """

    w: Tensor
    buffers: Tensor
    outer: Tensor
    logits: Tensor
    trajectory: Tensor
    status: Tensor
    bad: int = -1


class Outcome(NamedTuple):
    """What `unroll_again` returns: what an unrolling operator does, as far as its caller looks at it.

    Attributes:
        w, buffers: None where an objective alone was asked for.
        computed: whether there is a graph behind any of the tensors.
    """

    w: Any
    buffers: Any
    outer: Tensor
    logits: Tensor
    bad: int
    computed: bool


class Operators(NamedTuple):
    """The operators of one kind of problem: both halves, and the size of their scratch memory."""

    forward: Any
    backward: Any
    scratch: Any

    def call(self, arguments: Sequence[Any]) -> LinearResults:
        """The forward half, differentiable once in every tensor; arguments in the order of the schema.

        Where it is not traced, tensors may be as `unroll_node` takes them, and w0 a list of leaves.
        """
        if torch.compiler.is_compiling():
            return LinearResults(*self.forward(*arguments))
        tensors = list(arguments[:TENSORS])
        w0, tensors[W0] = tensors[W0], None
        leaves = [] if w0 is None else [w0] if isinstance(w0, Tensor) else w0
        return unroll_node(tensors, leaves, *by_type(*arguments[TENSORS:]))

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
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[TRAJECTORY], output[STATUS])
        ctx.save_for_backward(*inputs[:TENSORS], output[0], output[3])
        ctx.operators, ctx.rest, ctx.trajectory = operators, inputs[TENSORS:], output[TRAJECTORY]

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


def _traced_backward(ctx: Any, *bars: Tensor | None) -> Any:
    needs = ctx.needs_input_grad[:TENSORS]
    *tensors, w, logits = ctx.saved_tensors
    if all(bar is None for bar in bars[ZERO]):
        return (None,) * (TENSORS + len(ctx.rest))
    with torch._C._AutoDispatchBelowAutograd():
        # A traced graph may return the trajectory, or reverse it twice: the reverse half gets a copy to overwrite.
        found = ctx.operators.backward(
            *bars[ZERO], w, logits, ctx.trajectory.clone(), needs, *tensors, *ctx.rest
        )
    grads = [grad if need else None for need, grad in zip(needs, found, strict=True)]
    if torch.is_grad_enabled():
        anchor = next(t for t, need in zip(tensors, needs, strict=True) if need)
        grads = list(_OnceOnly.apply(anchor, *grads))  # type: ignore[no-untyped-call]
    return *grads, *(None,) * len(ctx.rest)


def by_type(
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
    *rest: Any,
) -> tuple[Any, ...]:
    """The constants of a schema as `unroll_node` takes them: names, scales, numbers, plan, sizes."""
    precision, activation, sizes = (
        ("fp32", *rest) if len(rest) == 2 else (rest[0] if rest else "fp32", "", ())
    )
    return (
        [loss, coordinates, regime, optimizer, precision, activation],
        [scale, query_scale],
        [classes, bias, flags, buffers, start, steps, slots, reversed, keep],
        plan,
        sizes,
    )


def unroll_node(
    tensors: Sequence[Tensor | None],
    w0: Sequence[Tensor],
    names: Sequence[str],
    scales: Sequence[float],
    numbers: Sequence[int],
    plan: Tensor,
    sizes: Sequence[int],
) -> LinearResults:
    """A call's node in C++, and what its inputs are called where one of them is freed too early; see the module."""
    results = LinearResults(*_unroll_node(tensors, w0, names, scales, numbers, plan, sizes))
    if results.outer.requires_grad:
        _watch(results.outer, tensors, w0, names[OPTIMIZER])
    return results


def unroll_again(
    tensors: Sequence[Tensor | None],
    w0: Sequence[Tensor],
    optimizer: str,
    family: int,
    look: bool,
    objective: bool,
) -> Outcome | None:
    """`unroll_node` with the constants of a call that was remembered, see the module. None if there was none.

    `look`: None, too, where a class on the CPU is outside [0, c); else classes are taken to be right.
    """
    results = Outcome(*_unroll_again(tensors, w0, family, look, objective))
    if results.bad == NOT_AGAIN:
        return None
    if results.computed:
        _watch(results.outer, tensors, w0, optimizer)
    return results


def _watch(outer: Tensor, tensors: Sequence[Tensor | None], w0: Sequence[Tensor], optimizer: str) -> None:
    """See to it that an input that is freed too early is called by its name."""
    called = (*BEFORE, *OPTIMIZERS[optimizer].settings, *BEHIND, *["w0"] * len(w0))
    watch(outer, zip(called, [*tensors, *w0], strict=True))


_unroll_node = torch.ops.pybilevel.unroll_node.default
_unroll_again = torch.ops.pybilevel.unroll_again.default
remember_unroll = torch.ops.pybilevel.remember_unroll.default
forget_unrolls = torch.ops.pybilevel.forget_unrolls.default
remembered_unrolls = torch.ops.pybilevel.remembered_unrolls.default
