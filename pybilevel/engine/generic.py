"""The generic engine: a plan interpreter for any inner loss that torch can differentiate twice.

One step's graph lives at a time; everything else is in the slots of the plan. Every plan gives bitwise equal
results, because states come from the same code whether they are stored or recomputed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.memory import plan_for
from pybilevel.engine.state import State
from pybilevel.errors import DivergenceError
from pybilevel.ops.freed import check_alive
from pybilevel.schedules import Code, Plan, decode


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run(call: Call) -> tuple[Any, State]:
    """The final parameters of a call, as an autograd node, and the final state.

    Time: the plan's steps, one gradient each, and about three gradients a reversed step. Memory: the plan's slots,
    and one step's graph.

    Raises:
        DivergenceError: on CPU, if an iterate is not finite.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "the generic engine takes gradients, which torch.inference_mode forbids: use no_grad"
        )
    dynamics = Dynamics(call)
    plan = plan_of(call, dynamics)
    inputs = [*dynamics.start.flat(), *dynamics.theta, *dynamics.settings]
    machine = Machine(dynamics, plan, inputs)
    with dynamics.streams.forward():
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            found = _Unroll.apply(machine, *inputs)  # type: ignore[no-untyped-call]
        else:
            found = machine.forward_only().flat()
    dynamics.streams.check()
    last = replace(Iterate.like(dynamics.start, found), carried=machine.carried)
    if call.device.type == "cpu" and not finite(last.w):
        raise DivergenceError(first_bad_step(dynamics, call.steps))
    w = pytree.tree_unflatten(last.w, dynamics.spec)
    random = last.carried[: len(dynamics.streams)]
    return w, State(w, last.buffers, call.start + call.steps, call.optimizer.name, random=random)


def plan_of(call: Call, dynamics: Dynamics) -> Plan:
    """The plan that the memory request of a call makes on this engine."""
    return plan_for(call, dynamics.start.nbytes, workspace_bytes(dynamics))


def workspace_bytes(dynamics: Dynamics) -> int:
    """An estimate of what is held beside the states: one step's graph, w_T, and the cotangents."""
    cotangents = 3 * dynamics.start.nbytes + sum(x.nbytes for x in (*dynamics.theta, *dynamics.settings))
    return dynamics.tape_bytes + cotangents


@torch.compiler.disable  # type: ignore[untyped-decorator]
def first_bad_step(dynamics: Dynamics, steps: int) -> int:
    """Re-runs a call that diverged: the index t of the first iterate w_t that is not finite (`steps` if none is)."""
    theta, settings = ([x.detach() for x in part] for part in (dynamics.theta, dynamics.settings))
    now = dynamics.start.detach()
    with torch.no_grad(), dynamics.streams.undisturbed():
        for t in range(steps):
            if not finite(now.w):
                return t
            now = dynamics.advance(t, now, theta, settings)
    return steps


def finite(tensors: tuple[Tensor, ...]) -> bool:
    """Whether every value is finite."""
    return all(bool(x.isfinite().all()) for x in tensors)


class Machine:
    """Runs the two halves of a plan on the dynamics; holds the slots between them."""

    def __init__(self, dynamics: Dynamics, plan: Plan, inputs: Sequence[Tensor]) -> None:
        self._dynamics = dynamics
        self._plan = plan
        inputs = [x.detach() for x in inputs]
        self._states, self._split = len(dynamics.start.flat()), len(dynamics.theta)
        self._start = Iterate.like(dynamics.start, inputs[: self._states])
        self._theta = inputs[self._states : self._states + self._split]
        self._settings = inputs[self._states + self._split :]
        self._autocast = autocast_now(inputs[0].device.type)
        self._slots: list[tuple[int, Iterate]] | None = None
        self._t, self._now = 0, self._start
        self.carried: tuple[Tensor, ...] = self._start.carried

    def names(self) -> list[str]:
        """What users call the inputs."""
        names = ["w0 or state"] * self._states + ["a tensor of inner or hparams"] * len(self._theta)
        return names + ["a setting of optimizer"] * len(self._settings)

    def forward(self) -> Iterate:
        """The final iterate; the forward half stays behind for `reverse`, and what is carried on in `carried`."""
        with torch.no_grad(), self._autocast():
            self._run_forward_half(watched=True)
            return self._final(self._advance(watched=True) if self._plan.steps else _copy(self._now))

    def forward_only(self) -> Iterate:
        """The final iterate; nothing is kept."""
        # a tensor that the first pass did not see may still carry gradients
        watched = torch.is_grad_enabled()
        with torch.no_grad(), self._autocast():
            for _ in range(self._plan.steps):
                self._now = self._advance(watched)
                self._t += 1
        return self._final(self._now if self._plan.steps else _copy(self._now))

    def reverse(self, bars: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The cotangents of the inputs, where wanted, from those of the final iterate."""
        constant = [*self._theta, *self._settings]
        sums = [
            torch.zeros_like(x) if need else None
            for x, need in zip(constant, wanted[self._states :], strict=True)
        ]
        bar = Iterate.like(self._start, bars)
        with torch.no_grad(), self._autocast(), self._dynamics.streams.undisturbed():
            if self._plan.steps:
                self._dynamics.check_replay(self._theta)
            if self._slots is None:
                self._run_forward_half()
            for op in map(decode, self._plan.reverse_half):
                if op.code == Code.REVERSE:
                    bar = self._reverse_step(bar, wanted[self._states :], sums)
                else:
                    self._do(op.code, op.operand)
        # the reverse half overwrote the slots: a second backward runs the forward half again
        self._slots, self._now = None, self._start
        whole = self._plan.reversed == self._plan.steps
        first = [
            (x if whole else torch.zeros_like(x)) if need else None
            for x, need in zip(bar.flat(), wanted, strict=False)
        ]
        return first + sums

    def _final(self, last: Iterate) -> Iterate:
        self.carried = last.carried
        return last

    def _run_forward_half(self, watched: bool = False) -> None:
        # every slot is saved to before it is loaded (the plan was checked), so the start may stand in
        self._slots = [(0, self._start)] * self._plan.slots
        self._t, self._now = 0, self._start
        for op in map(decode, self._plan.forward_half):
            self._do(op.code, op.operand, watched)

    def _do(self, code: Code, operand: int, watched: bool = False) -> None:
        """SAVE, LOAD or ADVANCE. Iterates are never changed in place, so saving one is keeping a reference."""
        assert self._slots is not None
        if code == Code.SAVE:
            self._slots[operand] = (self._t, self._now)
        elif code == Code.LOAD:
            self._t, self._now = self._slots[operand]
        elif code == Code.ADVANCE:
            for _ in range(operand):
                self._now = self._advance(watched)
                self._t += 1
        else:
            raise NotImplementedError(
                f"the generic engine cannot run {code.name}: its dynamics have no inverse"
            )

    def _advance(self, watched: bool = False) -> Iterate:
        return self._dynamics.advance(self._t, self._now, self._theta, self._settings, watched)

    def _reverse_step(self, bar: Iterate, wanted: Sequence[bool], sums: Sequence[Tensor | None]) -> Iterate:
        """Pulls `bar` back through the step from the working state, and adds to the sums what it finds on the way."""
        split = self._split
        bar, theta_bars, setting_bars = self._dynamics.pullback(
            self._t, self._now, bar, self._theta, self._settings, wanted[:split], wanted[split:]
        )
        totals = [
            self._dynamics.place_theta(i, self._t, total)
            for i, total in enumerate(sums[:split])
            if total is not None
        ]
        totals += [
            self._dynamics.place(i, self._t, total)
            for i, total in enumerate(sums[split:])
            if total is not None
        ]
        for total, part in zip(totals, [*theta_bars, *setting_bars], strict=True):
            total.add_(part)
        return bar


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
        raise RuntimeError(
            "pb.unroll was differentiated twice (create_graph=True), which this version does not do: write the inner "
            "loop in plain PyTorch where you need second derivatives of the outer objective"
        )


def once(found: list[Tensor | None], anchors: list[Tensor]) -> list[Tensor | None]:
    """`found`, tied to `anchors` so that differentiating it raises."""
    present = [x for x in found if x is not None]
    tied = iter(_Once.apply(len(present), *present, *anchors))  # type: ignore[no-untyped-call]
    return [None if x is None else next(tied) for x in found]


def _copy(iterate: Iterate) -> Iterate:
    return Iterate.like(iterate, [x.clone() for x in iterate.flat()])


def autocast_now(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """A maker of contexts with the autocast settings of now, so that the reverse half has those of the forward half.

    Without autocast's cache of casts, which would keep the parameters of every step.
    """
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled=enabled, cache_enabled=False)
