"""The optimizer's step, and its pullback, over all parameters in one native call each, where it can."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.curvature import Pull
from pybilevel.engine.iterate import Iterate, Tensors
from pybilevel.engine.native import counts_steps, has_kernel
from pybilevel.ops import OPTIMIZERS, optimizer_node, optimizer_pullback, optimizer_step


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
        return self._after(now, found, carried)

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
        return StepPullback(
            Iterate(tuple(found[:count]), tuple(buffers)),
            found[split : split + count],
            self._settings(values, found[-1]),
        )

    def linearise(
        self,
        now: Iterate,
        g: Sequence[Tensor],
        values: Tensors,
        wanted: Sequence[bool],
        pull: Pull,
        carried: tuple[Tensor, ...],
    ) -> tuple[Iterate, Callable[[Iterate, Sequence[Tensor]], tuple[Iterate, Tensors, Tensors]]]:
        """What `Dynamics.linearise` returns, given the gradient and its pullback, as often as `pull` can be called."""

        def pull_step(bar: Iterate, sums: Sequence[Tensor]) -> tuple[Iterate, Tensors, Tensors]:
            with torch.no_grad():
                found = self.pullback(now, g, values, bar)
            both = pull(found.g, (*found.before.w, *sums))
            split = len(now.w)
            settings = [one for one, need in zip(found.settings, wanted, strict=True) if need]
            return Iterate(tuple(both[:split]), found.before.buffers), both[split:], settings

        with torch.no_grad():
            return self.step(now, g, values, carried), pull_step

    def chained(
        self,
        t: int,
        now: Iterate,
        g: Sequence[Tensor],
        values: Tensors,
        carried: tuple[Tensor, ...],
        record: Tensor,
    ) -> Iterate:
        """`step` as one node of autograd's graph; its backward writes row t of `record` (see `setting_columns`)."""
        name, flags, start = self._rest(now)
        tensors = [*now.w, *g, *self._buffers(now)]
        flat = optimizer_node(tensors, self._ordered(values), name, flags, start, len(now.w), record, t)
        return self._after(now, flat, carried)

    def record(self, steps: int, like: Tensor) -> Tensor:
        """Where the nodes of so many steps put the cotangents of settings."""
        return like.new_zeros(steps, len(self._order))

    def setting_columns(self, record: Tensor) -> Tensors:
        """The cotangents of each setting, in the order of the call, at all steps [steps]."""
        return [record[:, self._order.index(i)] for i in range(len(self._names))]

    def like(self, template: Iterate, tensors: Sequence[Tensor]) -> Iterate:
        """The inverse of `differentiable`; zeros for the count of steps."""
        count, kept = len(template.w), self._kept
        buffers = [
            (
                *tensors[count + i * kept : count + (i + 1) * kept],
                *(torch.zeros_like(last) for last in before[kept:]),
            )
            for i, before in enumerate(template.buffers)
        ]
        return Iterate(tuple(tensors[:count]), tuple(buffers))

    def _after(self, now: Iterate, flat: Sequence[Tensor], carried: tuple[Tensor, ...]) -> Iterate:
        """The next iterate, of what the operator gives."""
        count, kept = len(now.w), self._kept
        buffers = [
            (
                *flat[count + i * kept : count + (i + 1) * kept],
                *(last + 1.0 for last in before[kept:]),
            )
            for i, before in enumerate(now.buffers)
        ]
        return Iterate(tuple(flat[:count]), tuple(buffers), carried)

    def _settings(self, values: Tensors, packed: Tensor) -> Tensors:
        """The cotangents of the settings in the order of the call."""
        by_name = {i: bar for i, bar in zip(self._order, packed.unbind(), strict=True) if i is not None}
        return [by_name[i].reshape(value.shape) for i, value in enumerate(values)]

    def differentiable(self, now: Iterate) -> Tensors:
        """What `chained` differentiates in of an iterate: not the count of steps."""
        return [*now.w, *self._buffers(now)]

    def _buffers(self, now: Iterate) -> Tensors:
        return [buffer for buffers in now.buffers for buffer in buffers[: self._kept]]

    def _ordered(self, values: Tensors) -> list[Tensor | None]:
        return [None if i is None else values[i] for i in self._order]

    def _rest(self, now: Iterate) -> tuple[str, int, int]:
        return self._name, self._flags, int(now.buffers[0][-1]) if self._counts else 0

    def takes(self, now: Iterate) -> bool:
        """Whether all parameters have made as many steps: those of a state from elsewhere need not."""
        return not self._counts or len({int(buffers[-1]) for buffers in now.buffers}) == 1
