"""The interpreter of plans for the generic engine.

One step's graph lives at a time; everything else is in the slots of the plan. Every plan gives bitwise equal
results, because states come from the same code whether they are stored or recomputed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine.compiled import held_uncompiled
from pybilevel.engine.dynamics import Dynamics, Seen
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.storage import Storage
from pybilevel.engine.torch_step import PullStep
from pybilevel.schedules import Code, Plan, stopped


class Machine:
    """Runs the two halves of a plan on the dynamics; holds the slots between them.

    Attributes:
        steps: how many steps there are: those of the plan, or fewer once the observer has stopped the forward half.
        slots: how many states are kept beside the one at work.
        carried: what the final iterate carries.

    Args:
        inputs: of the autograd node: the tensors of the iterate 0, theta, settings.
        autocast: makes the context that both halves run in.
        storage: where saved states lie.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        plan: Plan,
        inputs: Sequence[Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
        storage: Storage,
    ) -> None:
        self._dynamics = dynamics
        self._plan = plan
        self.steps = plan.steps
        self.slots = plan.slots
        self._observer = dynamics.observer
        inputs = [x.detach() for x in inputs]
        self._states, self._split = len(dynamics.start.flat()), len(dynamics.theta)
        self._start = Iterate.like(dynamics.start, inputs[: self._states])
        self._theta = inputs[self._states : self._states + self._split]
        self._settings = inputs[self._states + self._split :]
        self._autocast = autocast
        self._storage = storage
        self._slots: list[tuple[int, Any]] | None = None
        self._t, self._now = 0, self._start
        self.carried: tuple[Tensor, ...] = self._start.carried

    def names(self) -> list[str]:
        """What users call the inputs."""
        names = ["w0 or state"] * self._states + ["a tensor of inner or hparams"] * len(self._theta)
        return names + ["a setting of optimizer"] * len(self._settings)

    def forward(self) -> Iterate:
        """The final iterate; the forward half stays behind for `reverse`, and what is carried on in `carried`."""
        with torch.no_grad(), self._autocast():
            return self._final(self._run_forward())

    def forward_only(self) -> Iterate:
        """The final iterate; nothing is kept."""
        # a tensor that the first pass did not see may still carry gradients
        watched = torch.is_grad_enabled()
        with torch.no_grad(), self._autocast():
            stop = not self.steps
            while not stop:
                self._now, stop = self._first(watched)
                self._t += 1
                stop = stop or self._t == self.steps
        self.steps = self._t
        return self._final(self._now if self._t else _copy(self._now))

    def reverse(self, bars: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The cotangents of the inputs, where wanted, from those of the final iterate."""
        bar = Iterate.like(self._start, bars)
        self._tell(self.steps, bar)
        # a callback may run what it likes compiled
        held = held_uncompiled() if self._observer is None else nullcontext()
        with held, torch.no_grad(), self._autocast(), self._dynamics.streams.undisturbed():
            if self._plan.steps:
                self._check_data()
            found = self._run_reverse(bar, wanted)
        found = [x if need else None for x, need in zip(found, wanted, strict=True)]
        if self._plan.reversed < self._plan.steps:
            first = found[: self._states]
            found[: self._states] = [None if x is None else torch.zeros_like(x) for x in first]
        return found

    def _check_data(self) -> None:
        """Raise if the reverse half would meet other data than the forward half."""
        self._dynamics.check_replay(self._theta)

    def _run_forward(self) -> Iterate:
        self._begin()
        for op in self._plan.forward_half:
            last = self._do(op.code, op.operand, first=True)
            if last is not None:
                self._stop_early()
                return last
        return self._first(watched=True)[0] if self._plan.steps else _copy(self._now)

    def _run_reverse(self, bar: Iterate, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The cotangents of the first iterate that is reached, and of theta and settings where wanted."""
        if self._slots is None:
            self._begin()
            for op in self._plan.forward_half:
                self._do(op.code, op.operand)
        sums = self._zeros(wanted)
        for op in self._plan.reverse_half:
            if op.code == Code.REVERSE:
                bar = self._reverse_step(bar, wanted[self._states :], sums)
                self._tell(self._t, bar)
            else:
                self._do(op.code, op.operand)
        # the reverse half overwrote the slots: a second backward runs the forward half again
        self._slots, self._now = None, self._start
        return [*bar.flat(), *sums]

    def _zeros(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Where the cotangents of theta and settings are added up, where wanted."""
        constant = zip([*self._theta, *self._settings], wanted[self._states :], strict=True)
        return [torch.zeros_like(x) if need else None for x, need in constant]

    def _final(self, last: Iterate) -> Iterate:
        self.carried = last.carried
        return last

    def _begin(self) -> None:
        # None stands for the initial state, which a run that was stopped early may load without having saved it
        self._slots = [(0, None)] * self._plan.slots
        self._t, self._now = 0, self._start

    def _do(self, code: Code, operand: int, first: bool = False) -> Iterate | None:
        """SAVE, LOAD or ADVANCE.

        Returns:
            The next iterate, if this is the `first` pass and the observer stops it: the run ends there, and the working
            state is the one before. Else None.
        """
        assert self._slots is not None
        if code == Code.SAVE:
            self._slots[operand] = (self._t, self._storage.put(self._now))
        elif code == Code.LOAD:
            self._t, kept = self._slots[operand]
            self._now = self._start if kept is None else self._storage.get(kept)
        elif code == Code.ADVANCE:
            for _ in range(operand):
                after, stop = self._first(watched=True) if first else (self._advance(), False)
                if stop:
                    return after
                self._now = after
                self._t += 1
        else:
            raise NotImplementedError(
                f"the generic engine cannot run {code.name}: its dynamics have no inverse"
            )
        return None

    def _first(self, watched: bool) -> tuple[Iterate, bool]:
        """A step of the first pass: the next iterate, and whether the observer stops there."""
        if self._observer is None:
            return self._advance(watched), False
        seen: Seen = []
        after = self._advance(watched, seen)
        ((loss, gradient),) = seen
        return after, self._observer.stepped(self._t, loss, gradient, after.w)

    def _stop_early(self) -> None:
        """The plan becomes that of the steps that ran; what is in the slots stays.

        A truncated plan may load the initial state now, which it had not saved.
        """
        assert self._slots is not None
        self._plan = stopped(self._plan, self._t + 1)
        self.steps = self._plan.steps
        self._slots += [(0, None)] * (self._plan.slots - len(self._slots))
        start = self._storage.put(self._start)
        self._slots = [(t, start if kept is None else kept) for t, kept in self._slots]

    def _advance(self, watched: bool = False, seen: Seen | None = None) -> Iterate:
        return self._dynamics.advance(self._t, self._now, self._theta, self._settings, watched, seen)

    def _tell(self, t: int, bar: Iterate) -> None:
        if self._observer is not None:
            self._observer.reversed(t, bar.w)

    def _reverse_step(self, bar: Iterate, wanted: Sequence[bool], sums: list[Tensor | None]) -> Iterate:
        """Pulls `bar` back through the step from the working state, and adds to the sums what it finds on the way."""
        split = self._split
        asked = wanted[:split], wanted[split:]
        pull = self._dynamics.pull_step(self._t, self._now, self._theta, self._settings, *asked)
        return self._pulled(pull, bar, sums, wanted)

    def _pulled(
        self, pull: PullStep, bar: Iterate, sums: list[Tensor | None], asked: Sequence[bool]
    ) -> Iterate:
        """`bar` pulled back through step t; the sums take what it finds, which is of what was `asked`, or fewer."""
        split, t = self._split, self._t
        places = [i for i, need in enumerate(asked[:split]) if need]
        totals = [self._dynamics.place_theta(i, t, self._total(i, sums)) for i in places]
        bar, found, setting_bars = pull(bar, totals)
        for i, total, new in zip(places, totals, found, strict=True):
            if total is sums[i]:
                sums[i] = new
            else:  # the part of a batch
                total.copy_(new)
        self._add_settings(t, setting_bars, sums, asked)
        return bar

    def _total(self, i: int, sums: Sequence[Tensor | None]) -> Tensor:
        """The sum of theta i; where it is not wanted, one that nobody will see."""
        total = sums[i]
        return torch.zeros_like(self._theta[i]) if total is None else total

    def _add_settings(
        self, t: int, bars: Sequence[Tensor], sums: Sequence[Tensor | None], asked: Sequence[bool]
    ) -> None:
        """Adds what step t found of each setting that was asked for to its sum, if that is wanted."""
        places = [i for i, need in enumerate(asked[self._split :]) if need]
        for i, bar in zip(places, bars, strict=True):
            total = sums[self._split + i]
            if total is not None:
                self._dynamics.place(i, t, total).add_(bar)


def _copy(iterate: Iterate) -> Iterate:
    return Iterate.like(iterate, [x.clone() for x in iterate.flat()])
