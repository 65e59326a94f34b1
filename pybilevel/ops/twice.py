"""What every way of differentiating an unroll says to whoever differentiates the result again."""

from pybilevel import _C


def double_backward() -> NotImplementedError:
    """The error of a hypergradient that is differentiated."""
    return NotImplementedError(_C.DIFFERENTIATED_TWICE)
