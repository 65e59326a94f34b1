"""Which way a call would go, why, and what it would cost, without running it."""

import torch

from pybilevel.engine import forward, fused, graphs, implicit, spectral, workspace
from pybilevel.engine.call import Call
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.flops import FlopCount
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.memory import packed_bytes, schedule_for
from pybilevel.engine.storage import offloads
from pybilevel.methods import Forward, Implicit, Spectral
from pybilevel.schedules import plan_bytes


def explain_call(call: Call) -> Explanation:
    """How a call would run. BackendError where running it would raise it."""
    if isinstance(call.method, Spectral) and call.steps:
        return spectral.describe(call)
    reasons = fused.against(call)
    if isinstance(call.method, Forward):
        return forward.describe(call, reasons)
    if isinstance(call.method, Implicit):
        return implicit.describe(call, reasons)
    return describe_generic(call, reasons) if reasons else fused.describe(call)


def describe_generic(call: Call, reasons: tuple[str, ...]) -> Explanation:
    """The generic engine's account of a call."""
    dynamics = Dynamics(call)
    state_bytes = dynamics.start.nbytes
    needed = packed_bytes(call) + (workspace.measure(dynamics) if call.steps else 0)
    schedule = schedule_for(call, state_bytes, needed)
    plan = schedule.plan(call.steps)
    forward, backward = _flops(dynamics) if call.steps else (0, 0)
    if graphs.fit(call, dynamics) and graphs.same_bits(dynamics):
        return Explanation(
            backend="generic",
            coordinates=None,
            regime="torch operations, one step at a time",
            reasons=reasons,
            schedule="the graph of every step is kept, nothing is run twice",
            steps=call.steps,
            slots=0,
            recomputation=1.0,
            flops=call.steps * backward,
            bytes_moved=None,
            peak_memory=graphs.forecast(call, dynamics, needed),
        )
    return Explanation(
        backend="generic",
        coordinates=None,
        regime="torch operations, one step at a time",
        reasons=reasons,
        schedule=schedule.describe(),
        steps=call.steps,
        slots=plan.slots,
        recomputation=plan.factor,
        flops=(call.steps + plan.recomputed) * forward + plan.reversed * backward,
        bytes_moved=None,
        peak_memory=plan_bytes(0 if offloads(call) else plan.slots, state_bytes, needed),
    )


def _flops(dynamics: Dynamics) -> tuple[int, int]:
    """Operations of one step and of its pullback (products and convolutions, as torch counts them)."""
    theta, settings = dynamics.constants()
    start = dynamics.start.detach()
    bar = Iterate.like(start, [torch.zeros_like(x) for x in start.flat()])
    wanted = dynamics.wanted()
    with dynamics.streams.undisturbed(), torch.no_grad(), FlopCount() as forward:
        dynamics.advance(0, start, theta, settings)
    with dynamics.streams.undisturbed(), torch.no_grad(), FlopCount() as backward:
        dynamics.pullback(0, start, bar, theta, settings, *wanted)
    return forward.total, backward.total
