"""Every step's graph kept from the forward half, as plain PyTorch does: where all of them fit, nothing runs twice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine import memory, workspace
from pybilevel.engine.call import Call
from pybilevel.engine.dynamics import Dynamics, PullStep, Seen
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.machine import Machine
from pybilevel.methods import Reverse

LEAST_STEPS = 4
"""Steps from which it pays: `same_bits` costs two gradients."""


def fit(call: Call, dynamics: Dynamics) -> bool:
    """Whether a call asks for bytes or "auto" and the graphs of all its steps fit: in the budget, or in little memory.

    Decided on `workspace.estimate`, of which a graph was 0.32 to 0.73 on the nets of tests/test_generic_memory.py.
    """
    method = call.method
    if not isinstance(method, Reverse) or method.truncate is not None or method.first_order:
        return False
    if call.steps < LEAST_STEPS or not isinstance(call.memory, int | str):
        return False
    limit = call.memory if isinstance(call.memory, int) else memory.SMALL_BYTES
    return call.steps * (workspace.estimate(dynamics) + dynamics.start.nbytes) <= limit


def same_bits(dynamics: Dynamics) -> bool:
    """Whether the inner gradient at w0 is bitwise the same with the graph of its own as without.

    torch has another formula for the first in a few operations (silu, group_norm), and compiled losses run uncompiled:
    then graphs are not kept, so that results do not depend on memory.
    """
    now = dynamics.start.detach()
    theta, settings = dynamics.constants()
    nothing = [False] * len(theta), [False] * len(settings)
    with torch.no_grad(), dynamics.streams.undisturbed():
        plain = dynamics.advance(0, now, theta, settings)
        kept, _ = dynamics.linearise(0, now, theta, settings, *nothing)
    return all(torch.equal(a, b) for a, b in zip(plain.flat(), kept.flat(), strict=True))


class GraphMachine(Machine):
    """Runs the steps in order and keeps the pullback of each, then calls them from the last to the first.

    The plan of the machine is for nothing but its number of steps. A second backward runs the steps again.

    Memory: T graphs of one step. Time: T gradients and their pullbacks, as plain PyTorch.
    """

    def __init__(self, *args: Any, asked: Sequence[bool]) -> None:
        super().__init__(*args)
        self.slots = 0
        # for what a backward may want: all that asks for gradients; it then wants these or fewer
        self._asked = asked[self._states :]
        self._pulls: list[PullStep] = []

    def _run_forward(self) -> Iterate:
        self._pulls, self._t, self._now = [], 0, self._start
        stop = False
        while self._t < self.steps and not stop:
            self._now, stop = self._kept_step(observed=True)
            self._t += 1
        self.steps = self._t
        return self._now

    def _run_reverse(self, bar: Iterate, wanted: Sequence[bool], sums: Sequence[Tensor | None]) -> Iterate:
        if not self._pulls:
            self._t, self._now = 0, self._start
            while self._t < self.steps:
                self._now, _ = self._kept_step(observed=False)
                self._t += 1
        self._now = self._start
        for t in reversed(range(self.steps)):
            self._t = t
            bar, *found = self._pulls.pop()(bar)
            parts = [part for half in found for part in half]
            needed = [need for need, asked in zip(wanted, self._asked, strict=True) if asked]
            self._add([part for part, need in zip(parts, needed, strict=True) if need], sums)
            self._tell(self._t, bar)
        return bar

    def _kept_step(self, observed: bool) -> tuple[Iterate, bool]:
        """The next iterate, its pullback kept; whether the observer stops there."""
        seen: Seen = []
        asked = self._asked[: self._split], self._asked[self._split :]
        after, pull = self._dynamics.linearise(
            self._t,
            self._now,
            self._theta,
            self._settings,
            *asked,
            watched=observed,
            seen=seen,
        )
        self._pulls.append(pull)
        if self._observer is None or not observed:
            return after, False
        ((loss, gradient),) = seen
        return after, self._observer.stepped(self._t, loss, gradient, after.w)
