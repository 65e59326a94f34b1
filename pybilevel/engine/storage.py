"""Where the states in the slots of a plan lie."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.iterate import Iterate
from pybilevel.schedules import Offload


class Storage(Protocol):
    """What SAVE and LOAD do with a state."""

    def put(self, state: Iterate) -> Any:
        """What a slot holds of it."""
        ...

    def get(self, kept: Any) -> Iterate:
        """The state again, from what `put` gave."""
        ...


class InPlace:
    """States stay where they are. They are never changed in place, so saving one is keeping a reference."""

    def put(self, state: Iterate) -> Iterate:
        """The state."""
        return state

    def get(self, kept: Iterate) -> Iterate:
        """The state."""
        return kept


class OnHost:
    """Tensors of a device go to pinned host memory and back, in the order of the current stream.

    What lies on the host already, such as the states of generators, is kept by reference.
    """

    def put(self, state: Iterate) -> tuple[Iterate, Iterate]:
        """A copy on the host, and empty tensors that know where it came from."""
        return _each(state, _to_host), _each(state, lambda x: x.new_empty(0))

    def get(self, kept: tuple[Iterate, Iterate]) -> Iterate:
        """A copy where the state was."""
        copy, origin = kept
        devices = iter([x.device for x in (*origin.flat(), *origin.carried)])
        return _each(copy, lambda x: x.to(next(devices), non_blocking=True))


def storage_for(call: Call) -> Storage:
    """What the memory request of a call says."""
    return OnHost() if offloads(call) else InPlace()


def offloads(call: Call) -> bool:
    """Whether the saved states of a call leave its device."""
    return isinstance(call.memory, Offload) and call.device.type != "cpu"


def _to_host(x: Tensor) -> Tensor:
    if x.is_cpu:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def _each(state: Iterate, change: Callable[[Tensor], Tensor]) -> Iterate:
    """`change` of every tensor, in the order of `flat`, then `carried`."""
    flat = [change(x) for x in state.flat()]
    like = Iterate.like(state, flat)
    return Iterate(like.w, like.buffers, tuple(change(x) for x in state.carried))
