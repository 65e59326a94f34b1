"""What one reversed step holds beside the stored states: estimated, or measured by running one."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.chain import Chain
from pybilevel.engine.dispatch import Counting
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate
from pybilevel.ops import Held

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
    dynamics.first_graph()  # is dropped: the loss runs in between
    start = dynamics.start.detach()
    theta, settings = dynamics.constants()
    wanted = dynamics.wanted()
    # the sums of theta are an argument of the pullback
    sums = _nbytes([x for x in dynamics.settings if x.requires_grad])
    bar = Iterate.like(start, [torch.zeros_like(x) for x in start.flat()])
    meter = PeakBytes()
    with dynamics.streams.undisturbed(), torch.no_grad(), meter:
        dynamics.pullback(0, start, bar, theta, settings, *wanted)
    # w_T and its cotangent are there all the time, and of the states one is the caller's own w0
    held = 2 * _nbytes(start.flat()) - _nbytes(start.w)
    return meter.peak + held + sums + SCALARS


def measure_graph(dynamics: Dynamics) -> int:
    """What every step but the last adds where graphs are kept: its graph, with the iterate that the next one begins at.

    Cost: two steps forward.
    """
    dynamics.first_graph()  # is dropped: the loss runs in between
    start = dynamics.start.detach()
    theta, settings = dynamics.constants()
    wanted = dynamics.wanted()
    with dynamics.streams.undisturbed(), torch.no_grad():
        if dynamics.chains() and dynamics.observer is None:
            chain = Chain(dynamics, 2, start, theta, settings, [*wanted[0], *wanted[1]], watched=False)
            chain.run(1)
            return added(chain)
        seen: list[Any] = []  # holds the loss, as where steps are pulled one by one
        with held() as live:
            kept = dynamics.linearise(0, start, theta, settings, *wanted, seen=seen)
        found = live()
    del kept, seen
    return found


def added(chain: Chain) -> int:
    """What step 1 adds to a chain of one step, measured by making it. Cost: a tenth more than the step's."""
    with held(chain.now().flat()) as live:
        before = live()
        chain.run(2)
    return live() - before


@contextmanager
def held(tensors: Sequence[Tensor] = ()) -> Iterator[Callable[[], int]]:
    """A meter of the bytes alive of `tensors` and of what torch operations make within it; it goes on to tell later."""
    meter = Held(list(tensors))
    try:
        yield meter.live
    finally:
        meter.end()


class Growth(NamedTuple):
    """The bytes that live at each allocation of a run with K tangents: fixed[i] + K each[i]."""

    fixed: Sequence[int]
    each: Sequence[int]

    def peak(self, count: int) -> int:
        """The most bytes at once with K = count."""
        return max(a + count * b for a, b in zip(self.fixed, self.each, strict=True))

    def most(self, room: int, count: int) -> int:
        """The largest K <= count whose peak fits into `room`; at least 1."""
        bounds = [(room - a) // b for a, b in zip(self.fixed, self.each, strict=True) if b > 0]
        return max(1, min([count, *bounds]))


MEASURED = 2, 3
"""The numbers of tangents that `measure_growth` runs with."""


def measure_growth(probe: Callable[[int], Callable[[], object]]) -> Growth:
    """The growth of the runs `probe(K)`, from those with 2 and 3 tangents; one alone may take another way.

    Most allocations of the one have their like in the other, and grow by the same with every tangent. Where something
    is done tangent by tangent, the other run has some more: those of the first rounds are compared, and, counted from
    the end, those of the last.

    Cost: two or three runs, a few times slower than without the meter.
    """
    two, three = (metered(probe(count)) for count in MEASURED)
    pairs = [(two.peak, three.peak)]
    if len(two.trace) != len(three.trace):  # the first run may also have tried a way that does not work
        pairs = [(two.peak, two.peak)]
        two = metered(probe(MEASURED[0]))
    pairs += _alike(two.trace, three.trace) + _alike(two.trace[::-1], three.trace[::-1])
    return Growth([3 * a - 2 * b for a, b in pairs], [b - a for a, b in pairs])


def metered(run: Callable[[], object]) -> "PeakBytes":
    """The meter of a run."""
    meter = PeakBytes()
    with meter:
        run()
    return meter


def _alike(trace: "Trace", longer: "Trace") -> list[tuple[int, int]]:
    """The bytes alive at each allocation of a trace, and at the next by the same operation of a longer one."""
    rest = iter(longer)
    found = []
    for name, live in trace:
        other = next((other for like, other in rest if like == name), None)
        if other is None:
            break
        found.append((live, other))
    return found


Trace = list[tuple[Any, int]]
"""Operation and bytes alive after each allocation."""


class PeakBytes(Counting):  # type: ignore[no-untyped-call]
    """Counts the bytes alive of storages that torch operations make within it.

    Attributes:
        peak: the most at once.
        live: those of now.
        trace: the operation that made each allocation, and those after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live = 0
        self.trace: Trace = []
        self._held: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}  # by where they lie

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _stored(result):
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in self._held and pointer not in _pointers((args, kwargs)):
                self._begin(func, tensor.untyped_storage(), pointer)
        return result

    def _begin(self, func: Any, storage: torch.UntypedStorage, pointer: int) -> None:
        size = storage.nbytes()
        if not size:
            return
        # weakref.finalize takes several times as long
        self._held[pointer] = size, weakref.ref(storage, lambda _: self._end(pointer))
        self.live += size
        self.peak = max(self.peak, self.live)
        self.trace.append((func, self.live))

    def _end(self, pointer: int) -> None:
        self.live -= self._held.pop(pointer)[0]


def _nbytes(tensors: Sequence[Tensor]) -> int:
    total: int = sum(x.nbytes for x in tensors)
    return total


def _pointers(value: Any) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in _stored(value)}


def _stored(value: Any) -> Iterator[Tensor]:
    """The tensors in what an operation takes or gives, but zeros that forward mode makes of nothing: no storage."""
    if isinstance(value, Tensor):
        if not value._is_zerotensor():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _stored(item)
    elif isinstance(value, dict):
        yield from _stored(list(value.values()))
