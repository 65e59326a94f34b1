"""What one reversed step holds beside the stored states: estimated, or measured by running one."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate

SCALARS = 1024
"""Bytes allowed for single numbers: settings, losses, the outer objective."""


def estimate(dynamics: Dynamics) -> int:
    """A guess without running anything: one step's graph, w_T, and the cotangents."""
    cotangents = 3 * dynamics.start.nbytes + _nbytes((*dynamics.theta, *dynamics.settings))
    return dynamics.tape_bytes + cotangents


def measure(dynamics: Dynamics) -> int:
    """The peak of one reversed step, with w_T, its cotangent and the sums of those of the inputs.

    Cost: one step forward and back at t = 0, a few times slower than without the meter.
    """
    start = dynamics.start.detach()
    theta, settings = dynamics.constants()
    wanted = dynamics.wanted()
    sums = _nbytes([x for x in (*dynamics.theta, *dynamics.settings) if x.requires_grad])
    bar = Iterate.like(start, [torch.zeros_like(x) for x in start.flat()])
    meter = PeakBytes()
    with dynamics.streams.undisturbed(), torch.no_grad(), meter:
        dynamics.pullback(0, start, bar, theta, settings, *wanted)
    # w_T and its cotangent are there all the time, and of the states one is the caller's own w0
    held = 2 * _nbytes(start.flat()) - _nbytes(start.w)
    return meter.peak + held + sums + SCALARS


def measure_graph(dynamics: Dynamics) -> int:
    """What stays of one step whose graph is kept: the graph, and the next iterate."""
    start = dynamics.start.detach()
    theta, settings = dynamics.constants()
    wanted = dynamics.wanted()
    meter = PeakBytes()
    with dynamics.streams.undisturbed(), torch.no_grad(), meter:
        kept = dynamics.linearise(0, start, theta, settings, *wanted)
        live = meter.live
    del kept
    return live


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, `peak` is the most bytes alive at once of storages that torch operations made; `live` those of now."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in pytree.tree_leaves((args, kwargs)) if _is_stored(x)}
        for tensor in filter(_is_stored, pytree.tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given and storage.data_ptr() not in self._sizes and storage.nbytes():
                self._begin(storage)
        return result

    def _begin(self, storage: torch.UntypedStorage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        self._sizes[pointer] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, pointer)

    def _end(self, pointer: int) -> None:
        self.live -= self._sizes.pop(pointer, 0)


def _nbytes(tensors: Sequence[Tensor]) -> int:
    total: int = sum(x.nbytes for x in tensors)
    return total


def _is_stored(leaf: Any) -> bool:
    # zeros that forward mode makes of nothing have no storage
    return isinstance(leaf, Tensor) and not leaf._is_zerotensor()
