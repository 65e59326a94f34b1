"""What is checked of an inner loss: its value, what it changes, and that a replay meets the same data."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pybilevel.engine import captures


def check_changed(inner: Any, relied: captures.Relied) -> None:
    """Raise if a tensor that the loss relies on was changed in place since the forward half."""
    changed = relied.changed()
    if changed:
        raise RuntimeError(
            f"inner uses {captures.describe(inner, changed)}, which was modified by an inplace operation between "
            "forward and backward, so the gradient would be wrong: call backward first, or change a clone"
        )


def check_value(value: object) -> None:
    """Raise unless the loss returned one floating number."""
    if not isinstance(value, Tensor):
        raise TypeError(f"inner must return a tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"inner must return one floating number, got shape {list(value.shape)} {value.dtype}: "
            "add .mean() or .sum()"
        )


def check_first(
    inner: Any, first: captures.Relied, again: Callable[[], Tensor], own: Sequence[Tensor]
) -> None:
    """Raise if the loss, evaluated again at t = 0, takes other tensors from outside, or gives another value."""
    unknown, same = first.replay(again, own)
    if unknown:
        raise RuntimeError(
            f"inner uses {captures.describe(inner, unknown)} in the backward but not in the forward (a name "
            "that it captures was bound to something else, such as the next batch), so "
            "the gradient would be wrong: call backward first, or pass the tensor through hparams"
        )
    if not same:
        raise RuntimeError(
            "inner gives another value in the backward than in the forward (a number that it captures changed, or "
            "it draws a batch itself), so the gradient would be wrong: call backward before the change, or pass "
            "what changes through hparams or batches"
        )


def check_mutated(inner: Any, seen: captures.Capture) -> None:
    """Raise if the first pass through the loss changed tensors from outside in place."""
    if seen.mutated:
        raise ValueError(
            f"inner changes {captures.describe(inner, seen.mutated)} in place (running statistics of BatchNorm?), "
            'which every step and the backward would do again: use pb.ModuleLoss(net, loss), with buffers="carry" if '
            "the change is wanted, or call .eval()"
        )
