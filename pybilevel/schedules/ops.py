"""The ops of a plan: integers `code | operand << 3` (csrc/core/plan.hpp has the same encoding)."""

from array import array
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

_CODE_BITS = 3
OP_BYTES = 4
"""Bytes of a packed op."""


class Code(IntEnum):
    """What an op does to the working state (index t), the numbered slots and the adjoint (index r).

    SAVE s: slots[s] = t. LOAD s: t = slots[s]. ADVANCE k: t += k. REVERSE: pulls the adjoint back through step
    t = r - 1, then r -= 1. UNDO k: t -= k by inverting steps.
    """

    SAVE = 0
    LOAD = 1
    ADVANCE = 2
    REVERSE = 3
    UNDO = 4


class Op(NamedTuple):
    """An op taken apart: its code, and its operand (a slot or a number of steps; 0 for REVERSE)."""

    code: Code
    operand: int


def encode(code: Code, operand: int = 0) -> int:
    """The integer of an op."""
    return int(code) | operand << _CODE_BITS


def decode(op: int) -> Op:
    """The op of an integer; ValueError if its code is unknown."""
    return Op(Code(op & ((1 << _CODE_BITS) - 1)), op >> _CODE_BITS)


def pack(ops: Iterable[int]) -> bytearray:
    """Ops as 32-bit integers, 4 bytes each: how plans are held, and how the native module takes them."""
    return bytearray(array("i", ops).tobytes())


def unpack(packed: bytearray) -> tuple[int, ...]:
    """The inverse of `pack`."""
    return tuple(memoryview(packed).cast("i"))
