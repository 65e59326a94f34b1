"""Schedules: what is stored, what is recomputed. A schedule writes plans; the drivers run them."""

from pybilevel.schedules.base import Schedule
from pybilevel.schedules.budget import format_bytes, parse_bytes, plan_bytes, within
from pybilevel.schedules.offload import Offload
from pybilevel.schedules.ops import OP_BYTES, Code, Op, decode, encode, pack, unpack
from pybilevel.schedules.periodic import Periodic
from pybilevel.schedules.plan import Plan
from pybilevel.schedules.revolve import Revolve
from pybilevel.schedules.stopped import stopped
from pybilevel.schedules.store_all import StoreAll
from pybilevel.schedules.truncated import Truncated

__all__ = [
    "OP_BYTES",
    "Code",
    "Offload",
    "Op",
    "Periodic",
    "Plan",
    "Revolve",
    "Schedule",
    "StoreAll",
    "Truncated",
    "decode",
    "encode",
    "format_bytes",
    "pack",
    "parse_bytes",
    "plan_bytes",
    "stopped",
    "unpack",
    "within",
]
