"""The optimizer's steps of a chain: from the loss at a state to the next state, in one graph, and back to the settings.

A state is what is differentiated of an iterate, flat: w, then the optimizer's buffers.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pybilevel.engine.iterate import Iterate, Tensors
from pybilevel.engine.native_step import NativeStep
from pybilevel.engine.torch_step import TorchStep


class Links(Protocol):
    """The steps from the first iterate of a chain.

    Attributes:
        through: settings get their cotangents from nodes that the first state hangs on, not from leaves.
    """

    through: bool

    def state(self, iterate: Iterate) -> Tensors:
        """What is differentiated of an iterate, or the part of its cotangent that belongs to that."""

    def step(
        self, t: int, value: Tensor, state: Tensors, known: Tensors, values: Tensors
    ) -> tuple[Tensors, bool]:
        """The next state from the loss at this one, by the settings' values.

        The flag says that nothing but w and `known` enters the loss, and that it has no custom function; it may be
        False all the same.
        """

    def iterate(self, state: Sequence[Tensor], steps: int, carried: tuple[Tensor, ...]) -> Iterate:
        """The iterate so many steps after the first, of its state."""

    def before(self, found: Sequence[Tensor]) -> Tensors:
        """The cotangents of the first iterate, flat, from those of its state."""

    def leaves(self, i: int) -> Tensors:
        """The leaves of setting i, one a step; none with `through`."""

    def column(self, i: int) -> Sequence[Tensor]:
        """With `through`, the cotangents of setting i at all steps, once the graph was pulled back."""


class NativeLinks:
    """One operator a step, see `ops.chain_step`."""

    through = True

    def __init__(self, native: NativeStep, first: Iterate, steps: int, asked: Sequence[bool]) -> None:
        self._native, self._first = native, first
        self._counted = native.counted(first)
        self._record = native.record(steps, first.w[0]) if any(asked) else None

    def state(self, iterate: Iterate) -> Tensors:
        return self._native.differentiable(iterate)

    def step(
        self, t: int, value: Tensor, state: Tensors, known: Tensors, values: Tensors
    ) -> tuple[Tensors, bool]:
        ordered = self._native.ordered(values)
        return self._native.chained(value, state, known, ordered, self._counted, self._record, t)

    def iterate(self, state: Sequence[Tensor], steps: int, carried: tuple[Tensor, ...]) -> Iterate:
        return self._native.iterate(self._first, state, steps, carried)

    def before(self, found: Sequence[Tensor]) -> Tensors:
        return self._native.like(self._first, found).flat()

    def leaves(self, i: int) -> Tensors:
        return []

    def column(self, i: int) -> Sequence[Tensor]:
        assert self._record is not None
        return self._native.setting_column(self._record, i).unbind()


class TorchLinks:
    """Torch operations. A leaf a step of every setting: the order of additions is then that of single steps."""

    through = False

    def __init__(self, step: TorchStep, first: Iterate, asked: Sequence[bool]) -> None:
        self._step, self._first, self._asked = step, first, asked
        self._values: list[Tensors] = []

    def state(self, iterate: Iterate) -> Tensors:
        return iterate.flat()

    def step(
        self, t: int, value: Tensor, state: Tensors, known: Tensors, values: Tensors
    ) -> tuple[Tensors, bool]:
        now = Iterate.like(self._first, state)
        g = torch.autograd.grad(value, now.w, create_graph=True, materialize_grads=True)
        leaves = [x.detach().requires_grad_(need) for x, need in zip(values, self._asked, strict=True)]
        self._values.append(leaves)
        return self._step(now, g, leaves).flat(), False

    def iterate(self, state: Sequence[Tensor], steps: int, carried: tuple[Tensor, ...]) -> Iterate:
        like = Iterate.like(self._first, state)
        return Iterate(like.w, like.buffers, carried)

    def before(self, found: Sequence[Tensor]) -> Tensors:
        return list(found)

    def leaves(self, i: int) -> Tensors:
        return [values[i] for values in self._values]

    def column(self, i: int) -> Sequence[Tensor]:
        return []
