"""From what the caller asked of memory to a plan, for every engine."""

import os
from pathlib import Path
from typing import Literal

import torch

from pybilevel.engine.call import Call
from pybilevel.methods import Reverse
from pybilevel.ops.tracing import constant
from pybilevel.schedules import OP_BYTES, Plan, Schedule, StoreAll, Truncated, plan_bytes, within

SMALL_BYTES = 64 << 20
"""Trajectories up to here are stored whole without asking the device what is free."""


def plan_for(call: Call, state_bytes: int, workspace_bytes: int) -> Plan:
    """The plan of a call on an engine with states and a workspace of so many bytes; truncation included."""
    plan: Plan = _written(schedule_for(call, state_bytes, workspace_bytes), call.steps)
    return plan


def schedule_for(call: Call, state_bytes: int, workspace_bytes: int) -> Schedule:
    """The schedule of a call: what it names, or what its budget buys; "auto" is a quarter of the free memory.

    Raises:
        ValueError: the budget is too small; the text gives the minimum.
    """
    truncate = call.method.truncate if isinstance(call.method, Reverse) else None
    schedule = _schedule(call.memory, _reversed_steps(call), state_bytes, workspace_bytes, call.device)
    return schedule if truncate is None else Truncated(schedule, truncate)


def whole_fits(call: Call, state_bytes: int, workspace_bytes: int) -> bool:
    """Whether a call asks for bytes, not for a schedule, and every state fits: in its budget, or without a question."""
    if not isinstance(call.memory, (int, str)):  # asking for a Schedule, a protocol, takes 10 us
        return False
    limit = call.memory if isinstance(call.memory, int) else SMALL_BYTES
    return plan_bytes(max(_reversed_steps(call) - 1, 0), state_bytes, workspace_bytes) <= limit


def packed_bytes(call: Call) -> int:
    """A bound on the bytes of a call's plan."""
    return most_ops(call) * OP_BYTES


def most_ops(call: Call) -> int:
    """A bound on the number of ops of a call's plan: no planner needs 4 a reversed step."""
    return 4 * _reversed_steps(call)


def _reversed_steps(call: Call) -> int:
    truncate = call.method.truncate if isinstance(call.method, Reverse) else None
    return call.steps if truncate is None else min(truncate, call.steps)


@constant
def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on the device now: what the system has, and what torch's cache holds unused."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(max(min(_system_free(), _container_free()), 0))


# torch.compile cannot trace into the planner, whose answer depends on constants only
@constant
def _written(schedule: Schedule, steps: int) -> Plan:
    return schedule.plan(steps)


def _schedule(
    memory: Literal["auto"] | int | Schedule,
    steps: int,
    state_bytes: int,
    workspace_bytes: int,
    device: torch.device,
) -> Schedule:
    if isinstance(memory, int):
        return within(memory, steps, state_bytes, workspace_bytes)
    if not isinstance(memory, str):
        return memory
    whole = plan_bytes(max(steps - 1, 0), state_bytes, workspace_bytes)
    if whole <= SMALL_BYTES:
        return StoreAll()
    return within(free_bytes(device) // 4, steps, state_bytes, workspace_bytes)


def _system_free() -> int:
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024


def _container_free() -> float:
    """What the control group of this process (version 2, as in containers) still allows."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
