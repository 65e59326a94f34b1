"""The forward half of a call alone, for methods that need no trajectory and for calls that nobody will reverse."""

from typing import Any

import torch

from pybilevel.engine import fused, generic
from pybilevel.engine.call import Call
from pybilevel.engine.state import State
from pybilevel.methods import Reverse


def forward_half(call: Call) -> tuple[Any, State]:
    """w_T and the final state as constants: in the fused kernels where they can, else step by step."""
    with torch.no_grad():  # the fused kernels leave out the buffers where nobody asks for the state
        return in_reverse_mode(call._replace(return_state=True))


def in_reverse_mode(call: Call) -> tuple[Any, State]:
    """The call with method=pb.Reverse(), whatever its own."""
    plain = _plain(call)
    return generic.run(plain) if fused.against(plain) else fused.run(plain)


def runs_fused(call: Call) -> bool:
    """Whether `forward_half` runs a call in the fused kernels."""
    return not fused.against(_plain(call))


def _plain(call: Call) -> Call:
    return call._replace(method=Reverse(), memory="auto")
