"""The optimizer's step, and its pullback, in torch operations: one parameter after the other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pybilevel.engine.curvature import Pull
from pybilevel.engine.iterate import Iterate, Tensors
from pybilevel.optimizers import Optimizer

PullStep = Callable[[Iterate, Sequence[Tensor]], tuple[Iterate, Tensors, Tensors]]
"""The pullback of one step: the cotangent of iterate t + 1, and sums of the wanted theta -> the cotangent of iterate t,
those sums with what the step adds to them, and the cotangents of the wanted settings."""


class TorchStep:
    """The step of an optimizer.

    Args:
        keys: for each setting its name, and the parameter that it belongs to, None: all of them.
    """

    def __init__(self, optimizer: Optimizer, keys: Sequence[tuple[str, int | None]]) -> None:
        self._optimizer, self._keys = optimizer, keys

    def __call__(
        self, now: Iterate, g: Sequence[Tensor], values: Tensors, carried: tuple[Tensor, ...] = ()
    ) -> Iterate:
        """The next iterate, by the gradient `g` and the settings' values of the step; `carried` is what it carries."""
        stepped = []
        for i, (w, g_leaf, buffers) in enumerate(zip(now.w, g, now.buffers, strict=True)):
            mine = {
                name: v if leaf is not None else v.reshape(v.shape + (1,) * (w.ndim - v.ndim))
                for (name, leaf), v in zip(self._keys, values, strict=True)
                if leaf is None or leaf == i
            }
            stepped.append(self._optimizer.step(w, g_leaf, buffers, mine))
        return Iterate(tuple(w for w, _ in stepped), tuple(b for _, b in stepped), carried)

    def linearise(
        self,
        now: Iterate,
        g: Sequence[Tensor],
        values: Tensors,
        wanted: Sequence[bool],
        pull: Pull,
        carried: tuple[Tensor, ...],
        retain: bool = False,
    ) -> tuple[Iterate, PullStep]:
        """The next iterate, and the pullback of gradient and step, given that of the gradient; `retain`: for any number
        of calls. `wanted`: which settings ask for a cotangent.
        """
        with torch.enable_grad():
            state = Iterate.like(now, [x.detach().requires_grad_() for x in now.flat()])
            g = [x.detach().requires_grad_() for x in g]
            values = [x.detach().requires_grad_(need) for x, need in zip(values, wanted, strict=True)]
            after = self(state, g, values, carried)
        inputs = [*state.flat(), *g, *(v for v, need in zip(values, wanted, strict=True) if need)]

        def pull_step(bar: Iterate, sums: Sequence[Tensor]) -> tuple[Iterate, Tensors, Tensors]:
            pairs = [(x, x_bar) for x, x_bar in zip(after.flat(), bar.flat(), strict=True) if x.requires_grad]
            outputs, bars = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, inputs, bars, retain_graph=retain, materialize_grads=True)
            split = len(now.flat())
            before = Iterate.like(now, found[:split])
            both = pull(found[split : split + len(g)], (*before.w, *sums))
            w_bar = tuple(both[: len(g)])
            return Iterate(w_bar, before.buffers), both[len(g) :], list(found[split + len(g) :])

        return after.detach(), pull_step
