"""The tangents that travel with an iterate in forward mode: which inputs they belong to, how they start, and how a
cotangent of the iterate meets them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine.variables import key


@dataclass(frozen=True)
class Block:
    """The directions of one input: one a number of it, or one a number of a task's part where tasks do not meet.

    Attributes:
        name: its place among the inputs, such as "w0[0]" or "theta[2]".
        shape: its shape.
        lead: its leading task axes, whose parts are seeded together, since no task sees another's part; 0: none.
        source: the input; None in a state that was loaded.
        key: what tells whether another tensor is the same variable, see `variables.key`.
    """

    name: str
    shape: tuple[int, ...]
    lead: int
    source: Tensor | None
    key: tuple[Any, ...] = ()

    @staticmethod
    def starting(name: str, source: Tensor, lead: int) -> "Block":
        """The block of an input that has no tangents yet."""
        return Block(name, tuple(source.shape), lead, source, key(source))

    @property
    def count(self) -> int:
        """The number of directions."""
        return prod(self.shape[self.lead :])

    def of(self, source: Tensor) -> "Block":
        """The same directions, of the same variable under another name."""
        return replace(self, source=source)

    def seeds(self, first: int, last: int, like: Tensor) -> Tensor:
        """The directions first..last-1 as tangents of the input: [last - first, *shape]; those it has not are zeros."""
        rows = torch.arange(max(first, 0), min(last, self.count), device=like.device)
        basis = like.new_zeros((last - first, self.count))
        basis[rows - first, rows] = 1
        basis = basis.reshape(last - first, *[1] * self.lead, *self.shape[self.lead :])
        return basis.expand(last - first, *self.shape)

    def contract(self, tangents: Tensor, bar: Tensor) -> Tensor:
        """The part of this input's cotangent that comes of one tensor's `bar` and its tangents [count, *shape]."""
        if not tangents.numel():
            return bar.new_zeros(self.shape)
        if not self.lead:
            return (tangents.reshape(self.count, -1) @ bar.reshape(-1)).reshape(self.shape)
        tasks = prod(self.shape[: self.lead])
        parts = torch.einsum("nbm,bm->bn", tangents.reshape(self.count, tasks, -1), bar.reshape(tasks, -1))
        return parts.reshape(self.shape)


@dataclass(frozen=True)
class Tangents:
    """P tangents of an iterate.

    Attributes:
        blocks: whose they are, in the order of the rows of `values`.
        values: one [P, *shape] a tensor of the iterate (w, then buffers), None where it is not floating.
    """

    blocks: tuple[Block, ...]
    values: tuple[Tensor | None, ...]

    @property
    def count(self) -> int:
        """P."""
        return sum(block.count for block in self.blocks)

    def pull(self, bars: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The cotangent of each block's input, where wanted, from those of the iterate: P products a tensor."""
        found: list[Tensor | None] = []
        first = 0
        for block, need in zip(self.blocks, wanted, strict=True):
            rows = slice(first, first + block.count)
            first += block.count
            parts = [
                block.contract(value[rows], bar)
                for value, bar in zip(self.values, bars, strict=True)
                if need
                and value is not None
                and (bar.ndim or not block.lead)  # () is a count, whose tangents are 0
            ]
            found.append(sum(parts[1:], parts[0]) if parts else None)
        return found

    def bound_to(self, inputs: dict[str, Tensor]) -> "Tangents":
        """These tangents, those of a loaded state tied to the inputs of the same name and shape; others are dropped."""
        if all(block.source is not None for block in self.blocks):
            return self
        blocks: list[Block] = []
        rows: list[int] = []
        first = 0
        for block in self.blocks:
            source = block.source if block.source is not None else inputs.get(block.name)
            if source is not None and source.shape == block.shape:
                blocks.append(replace(block, source=source, key=key(source)))
                rows += range(first, first + block.count)
            first += block.count
        return Tangents(tuple(blocks), tuple(None if v is None else v[rows] for v in self.values))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, names and numbers; which tensor an input was is not in it."""
        blocks = [{"name": b.name, "shape": list(b.shape), "lead": b.lead} for b in self.blocks]
        return {"blocks": blocks, "values": self.values}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> "Tangents":
        """The inverse of `state_dict`."""
        blocks = [Block(b["name"], tuple(b["shape"]), int(b["lead"]), None) for b in state["blocks"]]
        return Tangents(tuple(blocks), tuple(state["values"]))
