"""Types of the native module (csrc/module*.cpp)."""

from typing import Any

def build_info() -> dict[str, Any]:
    """Versions, instruction sets and CUDA state of this build."""

def pack_bytes() -> int:
    """Bytes of a SIMD pack of the CPU kernels in use."""

def registry() -> dict[str, Any]:
    """The rows of registry.def: "problems" [(loss, coordinates)], "activations", "optimizers" {name: description}."""

DIFFERENTIATED_TWICE: str
"""What is said to whoever differentiates a hypergradient."""

# csrc/core/plan.hpp and plan_machine.hpp. A plan is a bytearray of ops, integers
# code | operand << 3 of 32 bits.

class PlanReport:
    """What a valid plan costs, counted by the abstract machine."""

    @property
    def forward_ops(self) -> int: ...
    @property
    def forward_advances(self) -> int: ...
    @property
    def advances(self) -> int: ...
    @property
    def undone(self) -> int: ...
    @property
    def saves(self) -> int: ...
    @property
    def peak_slots(self) -> int: ...

def store_all(steps: int) -> bytearray:
    """Keeps every state."""

def revolve(steps: int, slots: int) -> bytearray:
    """Binomial checkpointing with at most `slots` slots."""

def periodic(steps: int, every: int) -> bytearray:
    """Keeps every `every`-th state, and one segment at a time."""

def revolve_advances(steps: int, slots: int) -> int:
    """The closed form t(T, c) of the least number of advanced steps."""

def slots_used(ops: bytearray) -> int:
    """1 + the highest slot that the ops name, 0 if none."""

def op_text(op: int) -> str:
    """An op in words, such as 'ADVANCE 3'."""

def check_plan(ops: bytearray, steps: int, slots: int, reversed: int) -> PlanReport:
    """Runs the abstract machine; ValueError names the op that is wrong and the remedy."""

def trace_plan(ops: bytearray, steps: int, slots: int, reversed: int) -> list[int]:
    """The order of execution: t for step t advanced, -1 - t for step t reversed."""
