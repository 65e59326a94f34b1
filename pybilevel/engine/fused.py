"""The fused engine: not connected yet, so every call has a reason to go elsewhere."""

from typing import Any

from pybilevel.engine.call import Call
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.state import State


def reasons(call: Call) -> list[str]:
    """Why the fused kernels cannot run a call; empty: they can."""
    if call.problem is None:
        return ["inner is a callable: the fused kernels know pb.SoftmaxRegression and pb.LeastSquares"]
    return ["the fused kernels are not connected yet"]


def run(call: Call) -> tuple[Any, State]:
    """The final parameters and state."""
    raise NotImplementedError


def describe(call: Call) -> Explanation:
    """How the kernels would run a call."""
    raise NotImplementedError
