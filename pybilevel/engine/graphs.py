"""Every step's graph kept from the forward half, as plain PyTorch does: where all of them fit, nothing runs twice."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.engine import memory, workspace
from pybilevel.engine.call import Call
from pybilevel.engine.chain import Chain
from pybilevel.engine.dynamics import Dynamics, Seen
from pybilevel.engine.iterate import Iterate
from pybilevel.engine.machine import Machine
from pybilevel.engine.torch_step import PullStep
from pybilevel.methods import Reverse

MOST_OVERESTIMATE = 5
"""How many times a graph a state and `workspace.estimate` may be, where it is worth to measure one. They were 1.4 to
3.9 times, on the nets of tests/test_generic_memory.py and of benchmarks/networks.py."""


class Room(NamedTuple):
    """Whether the graphs of all steps are kept.

    Attributes:
        enough: whether they may fit.
        most: the bytes that one of them may add to those before it; None: they surely fit.
    """

    enough: bool
    most: int | None = None


def room(call: Call, dynamics: Dynamics) -> Room:
    """The room of a call for the graphs of all its steps: in its budget or, with "auto", in little memory."""
    method = call.method
    if not isinstance(method, Reverse) or method.truncate is not None or method.first_order:
        return Room(False)
    if not call.steps or not isinstance(call.memory, int | str):
        return Room(False)
    limit = call.memory if isinstance(call.memory, int) else memory.SMALL_BYTES
    one = dynamics.start.nbytes + workspace.estimate(dynamics)
    if call.steps * one <= limit:
        return Room(True)
    if one > limit or call.steps * one > MOST_OVERESTIMATE * limit or call.steps == 1:
        return Room(False)
    return Room(True, (limit - one) // (call.steps - 1))


def fit(call: Call, dynamics: Dynamics) -> bool:
    """Whether a call would keep all graphs, but for `same_bits`. Where an estimate cannot tell, one is measured."""
    enough, most = room(call, dynamics)
    return enough and (most is None or workspace.measure_graph(dynamics) <= most)


def forecast(call: Call, dynamics: Dynamics, needed: int) -> int:
    """The bytes of a call that keeps all graphs; `needed`: those of one step, forward and back."""
    return needed + ((call.steps - 1) * workspace.measure_graph(dynamics) if call.steps > 1 else 0)


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

    Where step 0 shows that bits depend on it (see `same_bits`), or a step's graph is larger than `most` bytes, it runs
    the plan instead. A callback is told every cotangent, which a chain does not show. A second backward runs the steps
    again.

    Memory: T graphs of one step. Time: T gradients and their pullbacks, as plain PyTorch; one gradient more where an
    operation of the loss is not in `formulas.SAME`.
    """

    def __init__(self, *args: Any, asked: Sequence[bool], most: int | None = None) -> None:
        super().__init__(*args)
        self._keeps, self.slots, self._most = True, 0, most
        # for what a backward may want: all that asks for gradients; it then wants these or fewer
        self._asked = list(asked[self._states :])
        self._chains = self._observer is None and self._dynamics.chains()
        self._chain: Chain | None = None
        self._pulls: list[PullStep] = []
        self._ran_alone = False  # whether the loss was evaluated once a step, and for nothing else

    def _run_forward(self) -> Iterate:
        self._keep(observed=True)
        if not self._keeps:
            return super()._run_forward()
        self.steps = self._t
        # the last iterate becomes the output of the node that holds this machine
        last, self._now = self._now, self._start
        return last

    def _run_reverse(self, bar: Iterate, wanted: Sequence[bool]) -> list[Tensor | None]:
        if not self._keeps:
            return super()._run_reverse(bar, wanted)
        if self._pulls_chain():
            try:
                return self._pull_chain(bar, wanted)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                if "modified by an inplace operation" in str(error):
                    raise
                self._chain = None  # the pullbacks of single steps know what to do without a second backward
                self._check_data()
        if not self._pulls:
            self._chain, self._chains = None, False
            self._keep(observed=False)
        sums = self._zeros(wanted)
        for t in reversed(range(self.steps)):
            self._t = t
            bar = self._pulled(self._pulls.pop(), bar, sums, self._asked)
            self._tell(t, bar)
        self._now = self._start
        return [*bar.flat(), *sums]

    def _pulls_chain(self) -> bool:
        return self._chain is not None and self._chain.usable()

    def _check_data(self) -> None:
        if self._pulls_chain() and self._ran_alone:
            # the graph is that of what ran, as long as the tensors that it holds are the same
            self._dynamics.check_changed()
        else:
            super()._check_data()

    def _pull_chain(self, bar: Iterate, wanted: Sequence[bool]) -> list[Tensor | None]:
        assert self._chain is not None
        found = self._chain.pull(bar, wanted)
        self._chain = None
        return found

    def _keep(self, observed: bool) -> None:
        """Runs the steps, and keeps their graphs if that does not change bits."""
        self._pulls, self._t, self._now = [], 0, self._start
        if self._chains:
            self._keep_chain(observed)
        else:
            self._keep_pulls(observed)

    def _keep_chain(self, observed: bool) -> None:
        parts = self._start, self._theta, self._settings, self._asked, observed
        first = self._dynamics.first_graph()
        self._ran_alone = first is not None
        self._chain = Chain(self._dynamics, self.steps, *parts, first)
        self._chain.run(1)
        if observed and (self._forgo(self._chain.now) or self._outgrows(workspace.added, self._chain)):
            return
        self._chain.run(self.steps)
        self._t, self._now = self.steps, self._chain.now()

    def _keep_pulls(self, observed: bool) -> None:
        stop = False
        while self._t < self.steps and not stop:
            first = observed and self._t == 0
            seen: Seen = []
            with workspace.held() if first and self._most is not None else nullcontext() as live:
                after, pull = self._dynamics.linearise(
                    *(self._t, self._now, self._theta, self._settings),
                    *(self._asked[: self._split], self._asked[self._split :]),
                    watched=observed,
                    seen=seen,
                )
            self._pulls.append(pull)
            if first and (self._forgo(lambda: after) or (live and self._outgrows(live))):  # noqa: B023 (called at once)
                return
            self._now = after
            self._t += 1
            if self._observer is not None and observed:
                ((loss, gradient),) = seen
                stop = self._observer.stepped(self._t - 1, loss, gradient, after.w)

    def _forgo(self, kept: Callable[[], Iterate]) -> bool:
        """Drops the graphs if step 0, which has come to `kept`, tells that they would change bits."""
        if self._dynamics.one_formula():
            return False
        self._ran_alone = False
        with self._dynamics.streams.undisturbed():
            if _equal(self._advance(), kept()):
                return False
        return self._drop()

    def _outgrows(self, measure: Callable[..., int], *args: Any) -> bool:
        """Drops the graphs if one of them is larger than there is room for."""
        if self._most is None or measure(*args) <= self._most:
            return False
        return self._drop()

    def _drop(self) -> bool:
        self._keeps, self._chain, self._pulls, self._ran_alone = False, None, [], False
        self.slots = self._plan.slots
        return True


def _equal(a: Iterate, b: Iterate) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.flat(), b.flat(), strict=True))
