"""Forward mode: tangents of every wanted number travel with the iterates, and memory is constant in T.

    Z_{t+1} = dPhi_t/d(w, buffers) Z_t + dPhi_t/dtheta,   dE/dtheta = Z_T^T w_bar

The tangents of the inner gradient are products with the Hessian (`GradientMap.linearise_tangents`), those of the
optimizer's step are in `StepTangents`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine import memory
from pybilevel.engine.call import Call
from pybilevel.engine.directions import Directions, Rows, carries, directions
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.flops import FlopCount
from pybilevel.engine.generic import autocast_now, check_divergence, once, refuse_inference_mode
from pybilevel.engine.iterate import Iterate, Moment, Tensors
from pybilevel.engine.one_way import in_reverse_mode
from pybilevel.engine.state import State
from pybilevel.engine.step_tangents import Dots, StepTangents
from pybilevel.engine.tangents import Tangents
from pybilevel.engine.workspace import MEASURED, SCALARS, Growth, measure_growth, metered
from pybilevel.ops.freed import check_alive
from pybilevel.ops.tracing import untraced
from pybilevel.schedules import format_bytes

PushAll = Callable[[Dots, Callable[[Rows], tuple[int, int]]], list[Tensor | None]]
"""From some of the iterate's tangents, and which rows of a block these are, to those after a step."""

OPTIMIZER_GRAPH = 11
"""What the two graphs of the optimizer's step and the iterates around it hold, in iterates: from 7 (SGD) to 11
(RMSprop)."""


@untraced
def run(call: Call) -> tuple[Any, State]:
    """The final parameters of a call, as an autograd node that holds their tangents, and the final state.

    Raises:
        ValueError: P tangents exceed the memory of the call.
        DivergenceError: on CPU, if an iterate is not finite.
    """
    refuse_inference_mode("pb.Forward")
    dynamics = Dynamics(call)
    found = directions(call, dynamics)
    if not torch.is_grad_enabled() or not found.tangents.blocks:
        return in_reverse_mode(call)
    sweep = Sweep(call, dynamics, found)
    with dynamics.streams.forward():
        last, tangents = sweep.run()
    dynamics.streams.check()
    check_divergence(dynamics, last, sweep.steps)
    sources = [block.source for block in tangents.blocks]
    last = Iterate.like(last, _Tangent.apply(tangents, last.flat(), *sources))  # type: ignore[no-untyped-call]
    w, state = dynamics.finish(last, call.start + sweep.steps)
    return w, replace(state, tangents=tangents)


def describe(call: Call, reasons: tuple[str, ...]) -> Explanation:
    """How forward mode would run a call."""
    dynamics = Dynamics(call)
    sweep = Sweep(call, dynamics, directions(call, dynamics))
    count = sweep.count
    with dynamics.streams.undisturbed():
        step, push = sweep.flops() if call.steps else (0, 0)
    return Explanation(
        backend="generic",
        coordinates=None,
        regime=f"torch operations, one step at a time; tangents {sweep.chunk} at a time",
        reasons=reasons,
        schedule="nothing is stored or recomputed: tangents travel with the iterate",
        steps=call.steps,
        slots=0,
        recomputation=1.0,
        flops=call.steps * (step + count * push) + 2 * count * sum(x.numel() for x in dynamics.start.flat()),
        bytes_moved=None,
        peak_memory=sweep.peak_bytes(),
        tangents=count,
    )


class Sweep:
    """Iterate and tangents from w0 to w_T.

    Attributes:
        steps: how many steps there are: those of the call, or fewer once a callback stopped the run.
        count: P.
        chunk: how many tangents are pushed through a step at once.
    """

    def __init__(self, call: Call, dynamics: Dynamics, found: Directions) -> None:
        self._call, self._dynamics, self._directions = call, dynamics, found
        self._theta, self._settings = dynamics.constants()
        self.steps = call.steps
        self.count = found.tangents.count
        self._of_theta = [found.rows.get(f"theta[{i}]") for i in range(len(self._theta))]
        self._of_settings = [found.rows.get(f"settings[{i}]") for i in range(len(self._settings))]
        self._wanted = [rows is not None for rows in self._of_theta]
        self._step_tangents = StepTangents(dynamics)
        flat = dynamics.start.flat()
        self._row_bytes = sum(x.nbytes for x in flat if carries(x))
        self._seed_bytes = sum(x.nbytes for x, need in zip(self._theta, self._wanted, strict=True) if need)
        self._measured_one: int | None = None
        self._measured: Growth | None = None
        self.chunk = self._chunk()

    def run(self) -> tuple[Iterate, Tangents]:
        """The final iterate and its tangents."""
        now = self._dynamics.start.detach()
        with torch.no_grad(), autocast_now(self._call.device.type)():
            values = self._start_values(now)
            for t in range(self._call.steps):
                now, stop = self._step(t, now, values)
                if stop:
                    self.steps = t + 1
                    break
        if not self._call.steps:
            now = Iterate.like(now, [x.clone() for x in now.flat()])
        return now, Tangents(self._directions.tangents.blocks, tuple(values))

    def flops(self) -> tuple[int, int]:
        """Operations of one step and of one tangent through it (products and convolutions, as torch counts them)."""
        now = self._dynamics.start.detach()
        with torch.no_grad(), FlopCount() as step:
            *_, push = self._dynamics.linearise_tangents(
                0, now, self._theta, self._wanted, Moment(0, now.carried)
            )
        theta = self._dynamics.theta_at(self._theta, 0)
        moving = [*now.w, *(x for x, need in zip(theta, self._wanted, strict=True) if need)]
        with torch.no_grad(), FlopCount() as pushed:
            push([torch.zeros_like(x)[None] for x in moving])
        return step.total, pushed.total

    def peak_bytes(self) -> int:
        """The most bytes at once, as measured on one step: w_T and its tangents included."""
        if not self.steps:
            return self._held()
        # the backward has beside them a cotangent of w_T, and each input's gradient
        backward = sum(x.nbytes for x in self._dynamics.start.w) + self._seed_bytes
        step = self._one() if self.chunk == 1 else self._growth().peak(self.chunk)
        return self._held() + max(step, backward)

    def _chunk(self) -> int:
        """How many tangents memory allows at once. A step is measured, but where memory is plenty."""
        asked = self._call.memory
        limit = asked if isinstance(asked, int) else memory.SMALL_BYTES
        start = self._dynamics.start.nbytes
        each = self._dynamics.tape_bytes + OPTIMIZER_GRAPH * start + self._seed_bytes
        if not self.steps or self._held() + (1 + self.count) * each <= limit:
            return max(1, self.count)
        least = self._held() + self._one()
        if least > limit and not isinstance(asked, int):
            limit = max(limit, memory.free_bytes(self._call.device) // 4)
        if least > limit:
            raise ValueError(
                f"memory is {format_bytes(limit)}{'' if isinstance(asked, int) else ' (a quarter of what is free)'}, "
                f"but pb.Forward() carries P = {self.count} tangents, one a number of every tensor that requires a "
                f"gradient, and needs {format_bytes(least)}: use pb.Reverse(), whose cost does not grow with P, "
                "let fewer tensors require gradients, or give more memory"
            )
        room = limit if isinstance(asked, int) else max(memory.SMALL_BYTES, least)
        # a step with three tangents is measured, which must itself fit
        if self.count == 1 or MEASURED[-1] * self._one() > room:
            return 1
        return self._growth().most(room - self._held(), self.count)

    def _held(self) -> int:
        """What lives from step to step: the tangents, the iterate, and the first one but for the w0 given."""
        start = self._dynamics.start
        given = 0 if self._call.w0 is None else sum(x.nbytes for x in start.w)
        return self.count * self._row_bytes + start.nbytes - given + start.nbytes * (self.steps > 1) + SCALARS

    def _one(self) -> int:
        """What a step holds beside that with one tangent; measured once."""
        if self._measured_one is None:
            with self._dynamics.streams.undisturbed(), torch.no_grad():
                self._measured_one = metered(self._probe(1)).peak
        return self._measured_one

    def _growth(self) -> Growth:
        """The same with K tangents at once, K at least 2."""
        if self._measured is None:
            with self._dynamics.streams.undisturbed(), torch.no_grad():
                self._measured = measure_growth(self._probe)
        return self._measured

    def _probe(self, count: int) -> Callable[[], object]:
        """A step at w0 with `count` tangents, all inputs among theirs."""
        now, old = self._dynamics.start.detach(), self._directions.tangents.values
        dots = [
            None if v is None else x.new_zeros((count, *x.shape))
            for x, v in zip(now.flat(), old, strict=True)
        ]

        def step() -> Iterate:
            moment = Moment(0, now.carried)
            _, g, settings, push = self._linearise(0, now, moment)
            push(dots, lambda rows: (0, count))
            return self._dynamics.step(now, g, settings, moment.after)

        return step

    def _start_values(self, now: Iterate) -> list[Tensor | None]:
        """[P, *shape] for each tensor of the iterate: what the state brought, seeds of w0, and zeros."""
        values: list[Tensor | None] = []
        for x, old in zip(now.flat(), self._directions.tangents.values, strict=True):
            if old is None:
                values.append(None)
                continue
            value = x.new_zeros((self.count, *x.shape))
            value[: len(old)] = old
            values.append(value)
        names = [f"w0[{i}]" for i in range(len(now.w))]
        names += [f"buffers[{i}]" for i in range(len(values) - len(names))]
        for name, x, mine in zip(names, now.flat(), values, strict=True):
            rows = self._directions.rows.get(name)
            if rows is not None and mine is not None:
                for a in range(rows.first, rows.last, self.chunk):
                    b = min(a + self.chunk, rows.last)
                    mine[a:b] = rows.block.seeds(a - rows.first, b - rows.first, x)
        return values

    def _step(self, t: int, now: Iterate, values: list[Tensor | None]) -> tuple[Iterate, bool]:
        """One step of the iterate, and whether the callback stops there.

        Its tangents are changed in place.
        """
        dynamics = self._dynamics
        moment = Moment(t, now.carried)
        loss, g, settings, push = self._linearise(t, now, moment)
        for a in range(0, self.count, self.chunk):
            _push_rows(values, push, a, min(a + self.chunk, self.count))
        after = dynamics.step(now, g, settings, moment.after)
        stop = dynamics.observer is not None and dynamics.observer.stepped(t, loss, g, after.w)
        return after, stop

    def _linearise(self, t: int, now: Iterate, moment: Moment) -> tuple[Tensor, Tensors, Tensors, PushAll]:
        """Loss, gradient and settings of step t, and the map of the iterate's tangents to those after the step."""
        dynamics = self._dynamics
        loss, g, push = dynamics.linearise_tangents(t, now, self._theta, self._wanted, moment)
        settings = dynamics.at(self._settings, t)
        push_step = self._step_tangents.linearise(
            now, g, settings, [rows is not None for rows in self._of_settings]
        )

        def push_all(dots: Dots, window: Callable[[Rows], tuple[int, int]]) -> list[Tensor | None]:
            theta_dots = [
                rows.seeds(window(rows), x, partial(dynamics.place_theta, i, t))
                for i, (rows, x) in enumerate(zip(self._of_theta, self._theta, strict=True))
                if rows is not None
            ]
            g_dots = push([*dots[: len(now.w)], *theta_dots])
            setting_dots = [
                None if rows is None else rows.seeds(window(rows), x, partial(dynamics.place, i, t))
                for i, (rows, x) in enumerate(zip(self._of_settings, self._settings, strict=True))
            ]
            return push_step([*dots, *g_dots, *setting_dots])

        return loss, g, settings, push_all


def _push_rows(values: list[Tensor | None], push: PushAll, first: int, last: int) -> None:
    """Change rows first..last-1 of the tangents, in place; what that takes is gone before the next rows come."""
    dots = [None if value is None else value[first:last] for value in values]
    found = push(dots, lambda rows: (first - rows.first, last - rows.first))
    for value, new in zip(values, found, strict=True):
        if value is not None and new is not None:
            value[first:last] = new


class _Tangent(torch.autograd.Function):
    """The autograd node: the final iterate, whose backward is P inner products with its tangents."""

    @staticmethod
    def forward(ctx: Any, tangents: Tangents, last: list[Tensor], *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.tangents = tangents
        ctx.mark_non_differentiable(*(x for x in last if not carries(x)))
        return tuple(last)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        check_alive((block.name, block.source) for block in ctx.tangents.blocks)
        found = ctx.tangents.pull(bars, ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():
            found = once(found, [x for x in bars if x.requires_grad])
        return None, None, *found
