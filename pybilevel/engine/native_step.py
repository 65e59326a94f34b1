"""The optimizer's step, and its pullback, over all parameters in one native call each, where it can."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.curvature import Pull
from pybilevel.engine.iterate import Iterate, Tensors
from pybilevel.engine.native import CUDA, counts_steps, has_kernel
from pybilevel.engine.torch_step import PullStep
from pybilevel.ops import OPTIMIZERS, chain_step, optimizer_pullback, optimizer_step


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
        # a call without a state begins at zero, and all parameters make every step
        self._even: bool | None = True if call.state is None else None
        self._name, self._flags = call.optimizer.name, native.bits(call.optimizer)

    @staticmethod
    def of(call: Call, w: Sequence[Tensor]) -> "NativeStep | None":
        """The native step of a call whose parameters are `w`, or None where torch operations have to make it.

        They do for an optimizer without kernel, a setting with a value a parameter or a task, on a device without
        kernels, in half precision, and where torch.compile traces.
        """
        able = (
            has_kernel(call.optimizer)
            and not call.elementwise
            and not call.tasks
            and all(setting.ndim <= 1 for setting in call.settings.values())
            and all(_has_kernels(x, w[0]) for x in w)
            and not torch.compiler.is_compiling()
        )
        return NativeStep(call) if able else None

    def step(
        self, now: Iterate, g: Sequence[Tensor], values: Tensors, carried: tuple[Tensor, ...]
    ) -> Iterate:
        """The next iterate; `values` are the settings of the step, `carried` what the next iterate carries."""
        found = optimizer_step(now.w, g, self._buffers(now), self.ordered(values), *self._unread(now))
        return self._after(now, found, carried)

    def pull_step(
        self, now: Iterate, g: Sequence[Tensor], values: Tensors, wanted: Sequence[bool], pull: Pull
    ) -> PullStep:
        """The pullback of gradient and step, given that of the gradient, as often as that can be called.

        `wanted`: which settings ask for a cotangent.
        """
        split = len(now.w) * (1 + self._kept)

        def pull_step(bar: Iterate, sums: Sequence[Tensor]) -> tuple[Iterate, Tensors, Tensors]:
            with torch.no_grad():
                bars = (bar.w, self._buffers(bar))
                found = optimizer_pullback(
                    now.w, g, self._buffers(now), *bars, self.ordered(values), *self._unread(now)
                )
            before = self.like(now, found[:split])
            both = pull(found[split:-1], (*before.w, *sums))
            settings = [found[-1][self._order.index(i)] for i, need in enumerate(wanted) if need]
            count = len(now.w)
            return Iterate(tuple(both[:count]), before.buffers), both[count:], settings

        return pull_step

    def chained(
        self,
        value: Tensor,
        state: Sequence[Tensor],
        known: Sequence[Tensor],
        ordered: Sequence[Tensor | None],
        counted: tuple[int, Tensor | None],
        record: Tensor | None,
        t: int,
    ) -> tuple[Tensors, bool]:
        """Step t of a chain from the loss at `state` (see `differentiable`), by the settings as of `ordered`.

        `counted` is that of the chain's first iterate. Its backward writes row t of `record`; None: no setting asks.

        Returns:
            The next state, and whether nothing but it and `known` enters the loss (see `ops.chain_step`).
        """
        start, count = counted
        leaves = len(state) // (1 + self._kept)
        return chain_step(  # type: ignore[no-any-return]
            *(value, state, known, ordered, self._name, self._flags, start + t, leaves, record, t, count)
        )

    def counted(self, now: Iterate) -> tuple[int, Tensor | None]:
        """How many steps were made before: as a number, or on CUDA as a tensor to add to it."""
        *_, start, count = self._unread(now)
        return start, count

    def iterate(
        self, first: Iterate, state: Sequence[Tensor], steps: int, carried: tuple[Tensor, ...]
    ) -> Iterate:
        """The iterate so many steps after the first of a chain, of its state."""
        made = self._made(first)
        return self._iterate(first, state, torch._foreach_add(made, float(steps)) if made else [], carried)

    def record(self, steps: int, like: Tensor) -> Tensor:
        """Where the nodes of so many steps put the cotangents of settings."""
        return like.new_zeros(steps, len(self._order))

    def setting_column(self, record: Tensor, i: int) -> Tensor:
        """The cotangents of setting i, in the order of the call, at all steps [steps]."""
        return record[:, self._order.index(i)]

    def like(self, template: Iterate, tensors: Sequence[Tensor]) -> Iterate:
        """The inverse of `differentiable`; zeros for the count of steps."""
        made = self._made(template)
        return self._iterate(template, tensors, torch._foreach_sub(made, made) if made else [])

    def _after(self, now: Iterate, flat: Sequence[Tensor], carried: tuple[Tensor, ...]) -> Iterate:
        """The next iterate, of what the operator gives."""
        made = self._made(now)
        return self._iterate(now, flat, torch._foreach_add(made, 1.0) if made else [], carried)

    def _made(self, now: Iterate) -> Tensors:
        """The counts of steps of all parameters; together, since on CUDA each operation of one costs a launch."""
        return [buffers[-1] for buffers in now.buffers] if self._counts else []

    def _iterate(
        self,
        like: Iterate,
        flat: Sequence[Tensor],
        counts: Sequence[Tensor],
        carried: tuple[Tensor, ...] = (),
    ) -> Iterate:
        """An iterate of w, the buffers of each, and the counts of steps where there are any."""
        count, kept = len(like.w), self._kept
        buffers = tuple(
            (*flat[count + i * kept : count + (i + 1) * kept], *counts[i : i + 1]) for i in range(count)
        )
        return Iterate(tuple(flat[:count]), buffers, carried)

    def differentiable(self, now: Iterate) -> Tensors:
        """What `chained` differentiates in of an iterate: not the count of steps."""
        return [*now.w, *self._buffers(now)]

    def _buffers(self, now: Iterate) -> Tensors:
        return [buffer for buffers in now.buffers for buffer in buffers[: self._kept]]

    def ordered(self, values: Tensors) -> list[Tensor | None]:
        """The settings of a step as the operators take them."""
        return [None if i is None else values[i] for i in self._order]

    def _rest(self, now: Iterate) -> tuple[str, int, int]:
        return self._name, self._flags, int(now.buffers[0][-1]) if self._counts else 0

    def _unread(self, now: Iterate) -> tuple[str, int, int, Tensor | None]:
        """`_rest`, but for a count on CUDA, which the kernel reads: the host would have to wait for it."""
        count = now.buffers[0][-1] if self._counts else None
        if count is None or count.is_cpu:
            return *self._rest(now), None
        return self._name, self._flags, 0, count

    def takes(self, now: Iterate) -> bool:
        """Whether all parameters have made as many steps: those of a state from elsewhere need not.

        On CUDA that is asked once a call, for the host has to wait for the answer.
        """
        if not self._counts:
            return True
        if self._even is None or now.buffers[0][-1].is_cpu:
            self._even = len({int(buffers[-1]) for buffers in now.buffers}) == 1
        return self._even


def _has_kernels(x: Tensor, first: Tensor) -> bool:
    able = x.is_cpu or (x.is_cuda and CUDA)
    return able and x.device == first.device and x.dtype in (torch.float32, torch.float64)
