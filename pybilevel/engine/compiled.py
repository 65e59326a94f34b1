"""Inner losses that torch.compile made, or that call what it made.

A compiled function has no second backward, hides what it captures and draws other random numbers, so the engine runs
the code that it was made of, uncompiled. Only where the gradient in w is all that is wanted, which is every step
forward, it runs compiled, if it can.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from pybilevel.problems import ModuleLoss

_held = threading.local()


def is_compiled(inner: Callable[..., Any]) -> bool:
    """Whether torch.compile returned `inner`, or the module or the loss of a ModuleLoss.

    Raises:
        TypeError: it was given a ModuleLoss, which hides the buffers that it carries.
    """
    if isinstance(inner, ModuleLoss):
        return inner.compiled
    original = getattr(inner, "_torchdynamo_orig_callable", None)
    cells = getattr(original, "__closure__", None) or ()
    if any(isinstance(part, ModuleLoss) for part in (original, *(cell.cell_contents for cell in cells))):
        raise TypeError(
            "inner is a compiled pb.ModuleLoss: compile what it is made of, pb.ModuleLoss(torch.compile(net), loss)"
        )
    return original is not None


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, compiled functions and modules run as the Python code that they were made of."""
    # nothing is compiled before this module is there, and it takes a second to import
    if "torch._dynamo" not in sys.modules or getattr(_held, "inside", False):
        return nullcontext()
    return _Stance("force_eager")


@contextmanager
def held_uncompiled() -> Iterator[None]:
    """`uncompiled` for many evaluations, in this thread: each `uncompiled` within it costs 6 us less."""
    before = getattr(_held, "inside", False)
    with uncompiled():
        _held.inside = before or "torch._dynamo" in sys.modules
        try:
            yield
        finally:
            _held.inside = before


def compiled() -> AbstractContextManager[Any]:
    """Within it, they run compiled again."""
    return _Stance("default")


class _Stance:
    """`torch.compiler.set_stance` as a context, which sets it when it is made, and on entry once more: 3 us."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._set: AbstractContextManager[Any] = torch.compiler.set_stance(self._name)

    def __exit__(self, *error: Any) -> None:
        self._set.__exit__(*error)
