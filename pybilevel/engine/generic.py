"""The generic engine: any inner loss that torch can differentiate twice, as one autograd node."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine import graphs, workspace
from pybilevel.engine.call import Call
from pybilevel.engine.compiled import held_uncompiled
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.machine import Machine
from pybilevel.engine.memory import packed_bytes, plan_for, whole_fits
from pybilevel.engine.state import State
from pybilevel.engine.storage import storage_for
from pybilevel.errors import DivergenceError
from pybilevel.ops.freed import check_alive
from pybilevel.ops.tracing import untraced
from pybilevel.ops.twice import double_backward


@untraced
def run(call: Call) -> tuple[Any, State]:
    """The final parameters of a call, as an autograd node, and the final state.

    Time: the plan's steps, one gradient each, and about three gradients a reversed step. Memory: the plan's slots,
    and one step's graph.

    Raises:
        DivergenceError: on CPU, if an iterate is not finite.
    """
    refuse_inference_mode("the generic engine")
    # a callback may run what it likes compiled
    with held_uncompiled() if call.callback is None else nullcontext():
        return _run(call)


def _run(call: Call) -> tuple[Any, State]:
    dynamics = Dynamics(call, keep_first=torch.is_grad_enabled() and call.callback is None)
    inputs = [*dynamics.start.flat(), *dynamics.theta, *dynamics.settings]
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    machine = machine_for(call, dynamics, inputs, differentiated)
    with dynamics.streams.forward():
        found = (
            _Unroll.apply(machine, *inputs)  # type: ignore[no-untyped-call]
            if differentiated
            else machine.forward_only().flat()
        )
    dynamics.streams.check()
    like = Iterate.like(dynamics.start, found)
    last = Iterate(like.w, like.buffers, machine.carried)
    check_divergence(dynamics, last, machine.steps)
    return dynamics.finish(last, call.start + machine.steps)


def machine_for(call: Call, dynamics: Dynamics, inputs: Sequence[Tensor], differentiated: bool) -> Machine:
    """What runs a call within the memory it asks for: all graphs are kept if they fit, else the states of a plan.

    Where a budget is near, the workspace is measured, which takes a step forward and back, or the graph of a step as it
    is made.
    """
    state_bytes, needed = dynamics.start.nbytes, workspace.estimate(dynamics)
    room = graphs.room(call, dynamics) if differentiated else graphs.Room(False)
    if not room.enough:
        dynamics.first_graph()  # is dropped
    asks_for_bytes = isinstance(call.memory, (int, str)) and call.steps > 0
    if differentiated and asks_for_bytes and not whole_fits(call, state_bytes, 2 * needed):
        needed = workspace.measure(dynamics)
    plan = plan_for(call, state_bytes, needed + packed_bytes(call))
    parts = dynamics, plan, inputs, autocast_now(call.device.type), storage_for(call)
    if room.enough:
        return graphs.GraphMachine(*parts, asked=[x.requires_grad for x in inputs], most=room.most)
    return Machine(*parts)


def refuse_inference_mode(what: str) -> None:
    """RuntimeError under torch.inference_mode."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{what} takes gradients, which torch.inference_mode forbids: use no_grad")


def check_divergence(dynamics: Dynamics, last: Iterate, steps: int) -> None:
    """DivergenceError, on CPU, if the iterate after `steps` steps is not finite."""
    if last.w[0].device.type == "cpu" and not _finite(last.w):
        raise DivergenceError(_first_bad_step(dynamics, steps))


def _first_bad_step(dynamics: Dynamics, steps: int) -> int:
    """Re-runs a call that diverged: the index t of the first iterate w_t that is not finite (`steps` if none is)."""
    theta, settings = dynamics.constants()
    now = dynamics.start.detach()
    with torch.no_grad(), dynamics.streams.undisturbed():
        for t in range(steps):
            if not _finite(now.w):
                return t
            now = dynamics.advance(t, now, theta, settings)
    return steps


def _finite(tensors: tuple[Tensor, ...]) -> bool:
    """Whether every value is finite: a sum, half as costly, tells of most."""
    return all(isfinite(x.detach().sum()) or bool(x.isfinite().all()) for x in tensors)


class _Unroll(torch.autograd.Function):
    """The autograd node: forward half and final step; reverse half."""

    @staticmethod
    def forward(ctx: Any, machine: Machine, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.machine = machine
        # saved only so that autograd notices when an input is changed in place before the backward
        ctx.save_for_backward(*inputs)
        return tuple(ctx.machine.forward().flat())

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        inputs = ctx.saved_tensors
        check_alive(zip(ctx.machine.names(), inputs, strict=True))
        found = ctx.machine.reverse(bars, ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():
            found = once(found, [x for x in (*inputs, *bars) if x.requires_grad])
        return None, *found


class _Once(torch.autograd.Function):
    """The identity on gradients that are not differentiable: its own backward says so."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        raise double_backward()


def once(found: list[Tensor | None], anchors: list[Tensor]) -> list[Tensor | None]:
    """`found`, tied to `anchors` so that differentiating it raises."""
    present = [x for x in found if x is not None]
    tied = iter(_Once.apply(len(present), *present, *anchors))  # type: ignore[no-untyped-call]
    return [None if x is None else next(tied) for x in found]


def autocast_now(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """A maker of contexts with the autocast settings of now, so that the reverse half has those of the forward half.

    Without autocast's cache of casts, which would keep the parameters of every step.
    """
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

    def context() -> AbstractContextManager[Any]:
        if not enabled and not torch.is_autocast_enabled(device_type):  # 5 us less
            return nullcontext()
        return torch.autocast(device_type, dtype, enabled=enabled, cache_enabled=False)

    return context
