"""The random generators that an inner loss draws from: their states travel with the iterates, so draws are replayed."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

States = tuple[Tensor, ...]


class Streams:
    """The generators of one call, found by one pass through its loss; most losses have none, and pay nothing.

    Args:
        untouched: torch's generators that the loss does not draw from, with their states of now.
        resumed: the states that a run goes on from.

    Attributes:
        start: their states at the first step: those of `resumed`, which a `State` brings along, or of now.
        elsewhere: whether these differ.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator] = (),
        untouched: Sequence[tuple[torch.Generator, Tensor]] = (),
        resumed: Sequence[Tensor] = (),
    ) -> None:
        if generators and resumed and len(generators) != len(resumed):
            raise ValueError(
                f"state has the states of {len(resumed)} random generators but inner draws from {len(generators)}: go "
                "on with the same loss, or pass w0=state.w"
            )
        self._generators = tuple(generators)
        now = self.read()
        self.start: States = tuple(resumed) if generators and resumed else now
        self.elsewhere = _differ(now, self.start)
        self._others = tuple(g for g, _ in untouched)
        self._unused = tuple(state for _, state in untouched)

    def __len__(self) -> int:
        return len(self._generators)

    def read(self) -> States:
        """The states of now."""
        return tuple(g.get_state() for g in self._generators)

    def write(self, states: Sequence[Tensor]) -> None:
        """Go to these states; to none: stay."""
        if states:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def undisturbed(self) -> AbstractContextManager[None]:
        """Afterwards the generators are where they were before."""
        return self._restored() if self._generators else nullcontext()

    @contextmanager
    def _restored(self) -> Iterator[None]:
        before = self.read()
        try:
            yield
        finally:
            self.write(before)

    def forward(self) -> AbstractContextManager[None]:
        """Around a forward half: afterwards the generators are where a plain loop would have left them.

        A run that goes on from a state, where others have drawn in between, leaves them where they were instead:
        going back would repeat what those have seen.
        """
        return self.undisturbed() if self.elsewhere else nullcontext()

    @contextmanager
    def foreign(self) -> Iterator[None]:
        """Around code that is not the loss's, such as a callback: its draws are its own."""
        self.check()
        yield
        self._unused = tuple(g.get_state() for g in self._others)

    def check(self) -> None:
        """Raise if a forward half has drawn from a generator that the first pass did not."""
        if _differ(self._unused, tuple(g.get_state() for g in self._others)):
            raise RuntimeError(
                "inner draws random numbers at a later step, but not when it is called at first, so the backward "
                "could not replay them: draw at every step, or outside and pass the numbers through batches"
            )


def default_generators(device: torch.device) -> list[torch.Generator]:
    """torch's own generators that operations on `device` may draw from: that of the CPU, and of the device."""
    found = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found


def _differ(a: States, b: States) -> bool:
    return any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))
