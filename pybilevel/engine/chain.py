"""All steps in one graph, as plain PyTorch has them, differentiated by one call: bit by bit what single steps give.

Autograd runs the youngest node first, so the steps come one after another, and what reaches a tensor is added in the
order in which the pullbacks of single steps add it (`curvature.Pull`).
"""

from collections.abc import Sequence

import torch

from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate, Tensors


class Chain:
    """The graph of the steps made so far, for dynamics whose `chains` is true.

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
    ) -> None:
        self._dynamics, self._native = dynamics, dynamics.native
        self._settings = settings
        self._theta = dynamics.gradient_map.theta_leaves(theta, asked)
        self._first = self._last = Iterate.like(start, [x.detach() for x in start.flat()])
        for x in self._native.differentiable(self._first):
            x.requires_grad_()
        self._record = self._native.record(steps, start.w[0])

    def step(self, t: int, watched: bool) -> Iterate:
        """Adds step t: the iterate t + 1, with its graph."""
        self._last = self._dynamics.chained(t, self._last, self._theta, self._settings, self._record, watched)
        return self._last

    def usable(self) -> bool:
        """Whether `pull` gives all there is: no operation lacks a second backward, no theta got a hook."""
        hooked = any(x._backward_hooks for x in self._theta)
        return not (hooked or self._dynamics.gradient_map.in_forward_mode)

    def pull(self, bar: Iterate, wanted: Sequence[bool]) -> tuple[Iterate, Tensors, Tensors]:
        """From the cotangent of the last iterate, for one call, to those of the first and of each wanted theta.

        And to those of each setting at all steps, [steps].
        """
        ends = self._native.differentiable
        theta = [x for x, need in zip(self._theta, wanted, strict=True) if need]
        inputs = [*ends(self._first), *theta]
        found = torch.autograd.grad(ends(self._last), inputs, ends(bar), materialize_grads=True)
        split = len(inputs) - len(theta)
        before = self._native.like(self._first, found[:split])
        return before, list(found[split:]), self._native.setting_columns(self._record)
