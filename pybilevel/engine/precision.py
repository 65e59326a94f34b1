"""The precision of the products of large linear problems on CUDA: which calls may round them, and what that means.

    "fp32"     operands and sums in float32
    "3xtf32"   three tensor-core products of high and low parts: about as exact as float32
    "tf32"     one tensor-core product of operands rounded to 10 bits

Rounded are the products X W and X^T R of every step, where the whole device runs one task after another in primal
coordinates (csrc/cuda/tensor_products.hpp). All else stays float32, the outer objective included. No GPU has run it.
"""

from collections.abc import Sequence

import torch

from pybilevel.engine.call import Call
from pybilevel.problems import LinearProblem

ROUNDING = {"3xtf32": 2.0**-22, "tf32": 2.0**-11}
"""The relative error of one operand of a product, by precision: half a unit in its last place."""

PRECISIONS = ("fp32", *ROUNDING)


def check(call: Call, others: Sequence[str]) -> None:
    """ValueError where a call asks for rounded products, and the fused CUDA kernels in float32 do not run it.

    `others` are the reasons why the fused kernels cannot run it.
    """
    found = [*_reasons(call), *others]
    if call.precision != "fp32" and found:
        lines = "\n".join(f"  - {reason}" for reason in found)
        raise ValueError(
            f"precision={call.precision!r} is for linear problems in the fused CUDA kernels, in float32:\n{lines}\n"
            'Remedy: leave precision="fp32", or change what the reasons name.'
        )


def _reasons(call: Call) -> list[str]:
    problem = call.problem
    found = ['backend="generic" was asked for'] if call.backend == "generic" else []
    if problem is None:
        return found
    if not isinstance(problem, LinearProblem):
        found.append(f"inner is a {type(problem).__name__} (need a linear problem)")
    if problem.device.type != "cuda":
        found.append(f"device {problem.device} (need cuda)")
    if problem.dtype != torch.float32:
        found.append(f"dtype {problem.dtype} (need float32)")
    return found


def describe(precision: str, coordinates: str, dtype: torch.dtype) -> str:
    """What a call that runs fused does with the precision that it asks for, and the rounding to expect."""
    if precision == "fp32":
        return f"{'fp32' if dtype == torch.float32 else 'fp64'}, rounding {torch.finfo(dtype).eps / 2:.1g}"
    if coordinates != "primal":
        return f"fp32: {precision} is for the products of primal coordinates, which these are not"
    return (
        f"{precision}, operands of X W and of its transpose to {ROUNDING[precision]:.1g}, where the device runs one "
        "task after another; all else fp32"
    )
