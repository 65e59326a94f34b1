"""All steps in one graph, as plain PyTorch has them, differentiated by one call: bit by bit what single steps give.

Autograd runs the youngest node first, so the steps come one after another, and what reaches a tensor is added in the
order in which the pullbacks of single steps add it (`curvature.Pull`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pybilevel.engine.compiled import held_uncompiled
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.forward_over_reverse import tied
from pybilevel.engine.iterate import Iterate, Moment, Tensors
from pybilevel.engine.losses import First


class Chain:
    """The graph of the steps made so far, for dynamics whose `chains` is true.

    Args:
        asked: which of theta, then of settings, ask for gradients.
        watched: look for tensors that the first pass did not see.
        first: the graph that the first pass through the loss has left, which step 0 begins with.

    Time: a gradient a step, and a pullback of all. Memory: the graphs of all steps, until the pullback frees them.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        steps: int,
        start: Iterate,
        theta: Tensors,
        settings: Tensors,
        asked: Sequence[bool],
        watched: bool,
        first: First | None = None,
    ) -> None:
        self._dynamics, self._start, self._settings, self._watched = dynamics, start, settings, watched
        self._links = dynamics.links(start, steps, asked[len(theta) :])
        w = [x.detach().requires_grad_() for x in start.w] if first is None else first.w
        buffers = self._links.state(start)[len(w) :]
        self._ends = self._state = [*w, *(x.detach().requires_grad_() for x in buffers)]
        asked = asked[: len(theta)]
        shared = dynamics.gradient_map.theta_leaves(theta, asked) if first is None else first.theta
        self._shared = shared[: len(theta) - dynamics.stacks]
        split = len(self._shared)
        # a leaf a step of each learnable batch: the whole of it would get a gradient of its size at every step
        batches = list(zip(theta[split:], asked[split:], strict=True))
        self._parts = [[x[t].detach().requires_grad_(need) for x, need in batches] for t in range(steps)]
        self._value = None if first is None else first.value
        self._loss = None if batches else dynamics.bound(self._shared)
        self._constant = all(x.ndim == 0 for x in settings)
        self._t, self._carried = 0, start.carried

    def run(self, until: int) -> None:
        """Adds the steps up to, and without, the step `until`."""
        count = len(self._start.w)
        with held_uncompiled(), torch.enable_grad():
            for t in range(self._t, until):
                w, theta = self._state[:count], self._shared + self._parts[t]
                value = tied(self._evaluate(t, w, theta), w)
                values = self._settings if self._constant else self._dynamics.at(self._settings, t)
                self._state, plain = self._links.step(t, value, self._state, theta, values)
                # the first step also tells the kinds of operations
                if self._watched and not (plain and t):
                    self._dynamics.inspect(value, [*w, *theta])
        self._t = until

    def now(self) -> Iterate:
        """The iterate that the steps made so far have come to, without its graph."""
        state = [x.detach() for x in self._state]
        return self._links.iterate(state, self._t, self._carried)

    def _evaluate(self, t: int, w: Tensors, theta: Tensors) -> Tensor:
        """The loss at step t: what the first pass has left, or evaluated."""
        if self._value is not None:
            value, self._value = self._value, None
            return value
        moment = Moment(t, self._carried)
        value = (self._loss or self._dynamics.bound(theta))(w, moment)
        self._carried = moment.after
        return value

    def usable(self) -> bool:
        """Whether `pull` gives all there is: no operation lacks a second backward, no theta got a hook."""
        hooked = any(x._backward_hooks for x in self._shared)
        return not (hooked or self._dynamics.gradient_map.in_forward_mode)

    def pull(self, bar: Iterate, wanted: Sequence[bool]) -> list[Tensor | None]:
        """From the cotangent of the last iterate to those of the first, theta and settings, where wanted; for one call.

        `wanted`: of each of these, in the order of the inputs of the engine's node.
        """
        states = len(self._start.flat())
        split = states + len(self._shared)
        stacks = split + self._dynamics.stacks
        pulled = [i for i, need in enumerate(wanted[stacks:]) if need]
        inputs = list(self._ends) if any(wanted[:states]) or (pulled and self._links.through) else []
        whole = len(inputs)
        inputs += [x for x, need in zip(self._shared, wanted[states:split], strict=True) if need]
        columns = [i for i, need in enumerate(wanted[split:stacks]) if need]
        inputs += [parts[i] for i in columns for parts in self._parts]
        for i in pulled:
            inputs += self._links.leaves(i)
        found = self._differentiated(bar, inputs)
        before = self._links.before(found[:whole]) if whole else [None] * states
        rest = iter(found[whole:])
        shared = [next(rest) if need else None for need in wanted[states:split]]
        batches = [
            torch.stack([next(rest) for _ in self._parts]) if need else None for need in wanted[split:stacks]
        ]
        sums = [self._summed(i, rest) if need else None for i, need in enumerate(wanted[stacks:])]
        return [*before, *shared, *batches, *sums]

    def _differentiated(self, bar: Iterate, inputs: Tensors) -> Sequence[Tensor]:
        """The cotangents of `inputs`."""
        ends = zip(self._state, self._links.state(bar), strict=True)
        outputs, bars = zip(*((x, x_bar) for x, x_bar in ends if x.requires_grad), strict=True)
        return torch.autograd.grad(outputs, inputs, bars, materialize_grads=True)

    def _summed(self, i: int, found: Iterator[Tensor]) -> Tensor:
        """The cotangent of a setting from those of its values at all steps, added from the last to the first."""
        links, whole = self._links, self._settings[i]
        column = links.column(i) if links.through else [next(found) for _ in range(self._t)]
        total = torch.zeros_like(whole)
        for t in reversed(range(self._t)):
            self._dynamics.place(i, t, total).add_(column[t])
        return total
