"""Which tangents a call of forward mode carries: one block of directions for each input that wants a gradient."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.tangents import Block, Tangents
from pybilevel.engine.variables import key
from pybilevel.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop

ELEMENTWISE = (SGD, Adam, AdamW, RMSprop, Adagrad)
"""Optimizers whose step mixes no two numbers of a parameter, so that tasks stay apart."""


class Rows(NamedTuple):
    """Rows first..last-1 of the tangents belong to this block."""

    block: Block
    first: int
    last: int

    def seeds(self, window: tuple[int, int], x: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The directions from..to-1 of the block's input x, as tangents of the part of it that a step uses.

        Those that the block has not are zeros; None where it has none of them.
        """
        first, last = window
        if last <= 0 or first >= self.block.count:
            return None
        return torch.vmap(part)(self.block.seeds(first, last, x))


class Directions(NamedTuple):
    """The tangents of a call at w0.

    Attributes:
        tangents: every block, and the values that a state brought; new blocks have none yet.
        old: how many directions the state brought.
        rows: the rows of each input that has tangents, by its name: "w0[i]", "buffers[i]", "theta[i]", "settings[i]".
    """

    tangents: Tangents
    old: int
    rows: Mapping[str, Rows]


def directions(call: Call, dynamics: Dynamics) -> Directions:
    """Those of the state go on; every other input that requires a gradient starts its own.

    A state with tangents is no input: its w moves with them.
    """
    states, inputs = _named(dynamics)
    before = None if call.state is None else call.state.tangents
    if before is None:
        empty = (x.new_zeros((0, *x.shape)) if carries(x) else None for x in states.values())
        before, inputs = Tangents((), tuple(empty)), states | inputs
    else:
        before = before.bound_to(inputs)
    leads = _leads(call, dynamics, inputs)
    blocks, owner = list(before.blocks), {}
    for name, x in inputs.items():
        mine = next(
            (i for i, b in enumerate(blocks) if b.lead == leads[name] and b.key == key(x)),
            None,
        )
        if mine is not None:
            blocks[mine] = blocks[mine].of(x)
        elif x.requires_grad:
            mine = len(blocks)
            blocks.append(Block.starting(name, x, leads[name]))
        if mine is not None:
            owner[name] = mine
    first, places = 0, []
    for block in blocks:
        places.append((first, first + block.count))
        first += block.count
    rows = {name: Rows(blocks[i], *places[i]) for name, i in owner.items()}
    return Directions(Tangents(tuple(blocks), before.values), before.count, rows)


def carries(x: Tensor) -> bool:
    """Whether a tensor of the iterate has tangents."""
    return x.is_floating_point()


def _named(dynamics: Dynamics) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the iterate at w0, and the other inputs, by name."""
    w, flat = dynamics.start.w, dynamics.start.flat()
    states = {f"w0[{i}]": x for i, x in enumerate(w)}
    states |= {f"buffers[{i}]": x for i, x in enumerate(flat[len(w) :])}
    inputs = {f"theta[{i}]": x for i, x in enumerate(dynamics.theta)}
    return states, inputs | {f"settings[{i}]": x for i, x in enumerate(dynamics.settings)}


def _leads(call: Call, dynamics: Dynamics, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """How many leading task axes of each input are seeded together, since no task sees another's part of it."""
    lead = len(call.tasks)
    found = dict.fromkeys(inputs, 0)
    if not isinstance(call.optimizer, ELEMENTWISE):
        return found
    uniform = {f"settings[{i}]" for i in range(len(call.settings))}
    if call.mapped is None:
        apart = {f"theta[{i}]" for i in range(len(dynamics.theta)) if call.problem is not None}
    else:  # the first theta are the floating leaves of hparams
        dims = zip(pytree.tree_leaves(call.hparams), call.mapped.dims, strict=True)
        floating = [dim for x, dim in dims if isinstance(x, Tensor) and x.is_floating_point()]
        apart = {f"theta[{i}]" for i, dim in enumerate(floating) if dim == 0}
    for name, x in inputs.items():
        state = name.startswith(("w0", "buffers"))
        if (state or name in uniform | apart) and x.shape[:lead] == call.tasks:
            found[name] = lead
    return found
