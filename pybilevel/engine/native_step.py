"""The optimizer's step, and its pullback, over all parameters in one native call each, where it can."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.curvature import Pull
from pybilevel.engine.iterate import Iterate, Tensors
from pybilevel.engine.native import counts_steps, has_kernel
from pybilevel.ops import OPTIMIZERS, optimizer_pullback, optimizer_step


class StepPullback(NamedTuple):
    """The cotangents of what a step takes: the iterate, the gradient, and the settings in the order of the call."""

    before: Iterate
    g: Tensors
    settings: Tensors


class NativeStep:
    """The step of a call's optimizer as one operator.

    Torch operations on many small tensors cost more than the numbers.
    """

    def __init__(self, call: Call) -> None:
        native = OPTIMIZERS[call.optimizer.name]
        self._names = list(call.settings)
        self._order = [self._names.index(name) if name in self._names else None for name in native.settings]
        self._kept = native.kept(call.optimizer, call.settings)
        self._counts = counts_steps(call.optimizer)
        self._name, self._flags = call.optimizer.name, native.bits(call.optimizer)

    @staticmethod
    def of(call: Call, w: Sequence[Tensor]) -> "NativeStep | None":
        """The native step of a call whose parameters are `w`, or None where torch operations have to make it.

        They do for an optimizer without kernel, a setting with a value a parameter or a task, on CUDA, in half
        precision, and where torch.compile traces.
        """
        able = (
            has_kernel(call.optimizer)
            and not call.elementwise
            and not call.tasks
            and all(setting.ndim <= 1 for setting in call.settings.values())
            and all(x.is_cpu and x.dtype in (torch.float32, torch.float64) for x in w)
            and not torch.compiler.is_compiling()
        )
        return NativeStep(call) if able else None

    def step(
        self, now: Iterate, g: Sequence[Tensor], values: Tensors, carried: tuple[Tensor, ...]
    ) -> Iterate:
        """The next iterate; `values` are the settings of the step, `carried` what the next iterate carries."""
        found = optimizer_step(now.w, g, self._buffers(now), self._ordered(values), *self._rest(now))
        count, kept = len(now.w), self._kept
        buffers = [
            (
                *found[count + i * kept : count + (i + 1) * kept],
                *(last + 1.0 for last in before[kept:]),
            )
            for i, before in enumerate(now.buffers)
        ]
        return Iterate(tuple(found[:count]), tuple(buffers), carried)

    def pullback(self, now: Iterate, g: Sequence[Tensor], values: Tensors, bar: Iterate) -> StepPullback:
        """From the cotangent of the next iterate to those of this one, `g` and the settings."""
        bars = (bar.w, self._buffers(bar))
        found = optimizer_pullback(
            now.w, g, self._buffers(now), *bars, self._ordered(values), *self._rest(now)
        )
        count, kept = len(now.w), self._kept
        split = count * (1 + kept)
        buffers = [
            (
                *found[count + i * kept : count + (i + 1) * kept],
                *(torch.zeros_like(last) for last in before[kept:]),
            )
            for i, before in enumerate(now.buffers)
        ]
        by_name = {i: bar for i, bar in zip(self._order, found[-1].unbind(), strict=True) if i is not None}
        settings = [by_name[i].reshape(value.shape) for i, value in enumerate(values)]
        return StepPullback(
            Iterate(tuple(found[:count]), tuple(buffers)), found[split : split + count], settings
        )

    def linearise(
        self,
        now: Iterate,
        g: Sequence[Tensor],
        values: Tensors,
        wanted: Sequence[bool],
        pull: Pull,
        carried: tuple[Tensor, ...],
    ) -> tuple[Iterate, Callable[[Iterate], tuple[Iterate, Tensors, Tensors]]]:
        """What `Dynamics.linearise` returns, given the gradient and its pullback, as often as `pull` can be called."""

        def pull_step(bar: Iterate) -> tuple[Iterate, Tensors, Tensors]:
            with torch.no_grad():
                found = self.pullback(now, g, values, bar)
            through_g = pull(found.g)
            split = len(now.w)
            w_bar = tuple(a + b for a, b in zip(found.before.w, through_g[:split], strict=True))
            settings = [one for one, need in zip(found.settings, wanted, strict=True) if need]
            return Iterate(w_bar, found.before.buffers), through_g[split:], settings

        with torch.no_grad():
            return self.step(now, g, values, carried), pull_step

    def _buffers(self, now: Iterate) -> Tensors:
        return [buffer for buffers in now.buffers for buffer in buffers[: self._kept]]

    def _ordered(self, values: Tensors) -> list[Tensor | None]:
        return [None if i is None else values[i] for i in self._order]

    def _rest(self, now: Iterate) -> tuple[str, int, int]:
        return self._name, self._flags, int(now.buffers[0][-1]) if self._counts else 0

    def takes(self, now: Iterate) -> bool:
        """Whether all parameters have made as many steps: those of a state from elsewhere need not."""
        return not self._counts or len({int(buffers[-1]) for buffers in now.buffers}) == 1
