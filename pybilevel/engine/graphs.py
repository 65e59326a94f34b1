"""Every step's graph kept from the forward half, as plain PyTorch does: where all of them fit, nothing runs twice."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine import memory, workspace
from pybilevel.engine.call import Call
from pybilevel.engine.chain import Chain
from pybilevel.engine.compiled import held_uncompiled
from pybilevel.engine.dynamics import Dynamics, PullStep, Seen
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.machine import Machine
from pybilevel.methods import Reverse

LEAST_STEPS = 4
"""Steps from which it pays: to see that bits stay the same may cost a gradient."""


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
    return _equal(plain, kept)


class GraphMachine(Machine):
    """Runs the steps in order and keeps their graphs: in one `Chain`, else the pullback of each.

    Where step 0 shows that bits depend on it (see `same_bits`), it runs the plan instead. A callback is told every
    cotangent, which a chain does not show. A second backward runs the steps again.

    Memory: T graphs of one step. Time: T gradients and their pullbacks, as plain PyTorch; one gradient more where an
    operation of the loss is not in `formulas.SAME`.
    """

    def __init__(self, *args: Any, asked: Sequence[bool]) -> None:
        super().__init__(*args)
        self._keeps, self.slots = True, 0
        # for what a backward may want: all that asks for gradients; it then wants these or fewer
        self._asked = list(asked[self._states :])
        self._chains = self._observer is None and self._dynamics.chains()
        self._chain: Chain | None = None
        self._pulls: list[PullStep] = []

    def _run_forward(self) -> Iterate:
        # a callback may run what it likes compiled
        with held_uncompiled() if self._observer is None else nullcontext():
            self._keep(observed=True)
        if not self._keeps:
            return super()._run_forward()
        self.steps = self._t
        # the last iterate becomes the output of the node that holds this machine
        last, self._now = self._now.detach(), self._start
        return last

    def _run_reverse(self, bar: Iterate, wanted: Sequence[bool], sums: list[Tensor | None]) -> Iterate:
        if not self._keeps:
            return super()._run_reverse(bar, wanted, sums)
        if self._chain is not None and self._chain.usable():
            try:
                return self._pull_chain(bar, wanted, sums)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                self._chain = None  # the pullbacks of single steps know what to do without a second backward
        if not self._pulls:
            self._chain, self._chains = None, False
            self._keep(observed=False)
        for t in reversed(range(self.steps)):
            self._t = t
            bar = self._pulled(self._pulls.pop(), bar, sums, self._asked)
            self._tell(t, bar)
        self._now = self._start
        return bar

    def kept(self) -> bool:
        return self._keeps and (self._chain is not None or bool(self._pulls))

    def _pull_chain(self, bar: Iterate, wanted: Sequence[bool], sums: list[Tensor | None]) -> Iterate:
        assert self._chain is not None
        split = self._split
        bar, found, columns = self._chain.pull(bar, wanted[:split])
        self._chain = None
        places = [i for i, need in enumerate(wanted[:split]) if need]
        for i, new in zip(places, found, strict=True):
            sums[i] = new
        for i, (total, column) in enumerate(zip(sums[split:], columns, strict=True)):
            if total is not None:
                for t in reversed(range(self.steps)):
                    self._dynamics.place(i, t, total).add_(column[t])
        return bar

    def _keep(self, observed: bool) -> None:
        """Runs the steps, and keeps their graphs if that does not change bits."""
        self._pulls, self._t, self._now = [], 0, self._start
        if self._chains:
            self._chain = Chain(
                self._dynamics,
                self.steps,
                self._start,
                self._theta,
                self._settings,
                self._asked[: self._split],
            )
        stop = False
        while self._t < self.steps and not stop:
            seen: Seen = []
            after = self._kept_step(observed, seen)
            if observed and self._t == 0 and not (self._dynamics.one_formula() or self._same_bits(after)):
                self._keeps, self._chain, self._pulls = False, None, []
                self.slots = self._plan.slots
                return
            self._now = after
            self._t += 1
            if self._observer is not None and observed:
                ((loss, gradient),) = seen
                stop = self._observer.stepped(self._t - 1, loss, gradient, after.w)

    def _kept_step(self, watched: bool, seen: Seen) -> Iterate:
        """The next iterate, its graph kept."""
        if self._chain is not None:
            return self._chain.step(self._t, watched)
        after, pull = self._dynamics.linearise(
            *(self._t, self._now, self._theta, self._settings),
            *(self._asked[: self._split], self._asked[self._split :]),
            watched=watched,
            seen=seen,
        )
        self._pulls.append(pull)
        return after

    def _same_bits(self, kept: Iterate) -> bool:
        with self._dynamics.streams.undisturbed():
            plain = self._advance()
        return _equal(plain, kept)


def _equal(a: Iterate, b: Iterate) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.flat(), b.flat(), strict=True))
