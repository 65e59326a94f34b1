"""A call on a `pb.MLP` in the native operator's terms: flat tasks and parameters, regime chosen, plan made."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.cost import Wanted
from pybilevel.engine.data import Data, given_inputs
from pybilevel.engine.itinerary import Itinerary, Storage, one_way, storage_of
from pybilevel.engine.layout import (
    BUFFERS0,
    DESIGNS_KEPT,
    flat_data,
    flat_l2,
    flat_settings,
    wanted_of,
)
from pybilevel.engine.select import FEW_TASKS, ROWS_WORK, Regime
from pybilevel.ops import OPTIMIZERS, Features, activations_size, mlp_scratch_bytes, parameters_size
from pybilevel.problems import MLP


class MlpLayout(NamedTuple):
    """One call, ready for `mlp_unroll`.

    Attributes:
        call: what was asked for.
        problem: its perceptron.
        outer: the perceptron whose data are the query set, or None.
        wanted: what the reverse half is asked for.
        regime: "tasks" or "rows".
        inputs: its tensors as the caller has them, in the order of the operator's schema; w0 as a list of leaves.
        inner: name, flags, buffers and steps taken of the optimizer.
    """

    call: Call
    problem: MLP
    outer: MLP | None
    wanted: Wanted
    regime: Regime
    inputs: tuple[Any, ...]
    inner: tuple[str, int, int, int]

    @property
    def x(self) -> Features:
        """The inputs [B, n, d]."""
        problem = self.problem
        shape = (prod(problem.tasks), problem.n, problem.d)
        return Features(shape, problem.dtype, problem.x.is_cuda)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The operator's tensors, in the order of its schema."""
        problem = self.problem
        start = flat_l2(problem), _initial_point(self.call.w0, problem), self.inputs[BUFFERS0]
        settings = flat_settings(self.call, problem)
        return *flat_data(problem), *start, *settings, *flat_data(self.outer)

    @property
    def why(self) -> str:
        """The network, in words."""
        widths = "-".join(map(str, self.problem.sizes))
        units = "threads" if self.x.is_cuda else "SIMD lanes"
        return f"perceptron {widths}, {self.problem.activation}, units along {units}"

    def storage(self, workspace_bytes: int | None = None) -> Storage:
        """What the call's memory request buys."""
        # torch.compile looks into what is remembered, and its sizes may be symbols
        bytes_of = slot_bytes if torch.compiler.is_compiling() else kept_slot_bytes
        state, activations = bytes_of(self.x, self.problem.sizes, self.inner[2])
        return storage_of(self.call, state, activations, self.scratch_bytes, workspace_bytes)

    def scratch_bytes(self) -> int:
        """Bytes of scratch while the operator runs, all threads together."""
        return mlp_scratch_bytes(*self.arguments(one_way(self.call.steps)))

    def itinerary(self) -> Itinerary:
        """The plan that the call's memory request buys; one way only, if nothing wants a gradient."""
        return self.storage().itinerary(self.call.steps) if self.wanted.reverse else one_way(self.call.steps)

    def arguments(self, itinerary: Itinerary) -> tuple[Any, ...]:
        """The operator's arguments, in the order of its schema."""
        return (*self.tensors, *self.constants(itinerary))

    def constants(self, itinerary: Itinerary) -> tuple[Any, ...]:
        """Those that are no tensors of the call."""
        problem, (optimizer, flags, buffers, start) = self.problem, self.inner
        scales = problem.scale, 1.0 if self.outer is None else self.outer.scale
        return (
            *(problem.loss, "primal", self.regime, optimizer, problem.c, True, *scales),
            *(flags, buffers, start),
            *(self.call.steps, itinerary.ops, itinerary.slots, itinerary.reversed, itinerary.keep),
            *(problem.activation, problem.sizes),
        )

    def flops(self, recomputed: int, kept: bool) -> int:
        """Operations of both halves; what is linear in n and in the widths counts as nothing.

        A step is 2 n W forward and as much for the gradient of every layer's weights and of its inputs (not of x),
        W weights. A step back: the forward part unless it was kept, the gradient of the activations (of the last hidden
        ones alone if the CPU kept the others), that of the weights if a setting needs it, and the R-operator: 4 n W
        forward, 4 n W for the weights, 4 n W for the inputs.
        """
        problem, wanted = self.problem, self.wanted
        pairs = list(pairwise(problem.sizes))
        first, whole = 2 * problem.n * prod(pairs[0]), 2 * problem.n * sum(i * o for i, o in pairs)
        step, activations = 3 * whole - first, whole - first
        if kept and not self.x.is_cuda:
            activations = min(activations, 2 * problem.n * prod(pairs[-1]))
        back = 0
        if wanted.reverse:
            back = (not kept) * whole + activations + wanted.settings * whole
            back += 6 * whole - 3 * first + wanted.features * 2 * first
        steps = self.call.steps
        query = (0 if self.outer is None else self.outer.n) * (3 * whole - first) // problem.n
        return self.x.shape[0] * ((steps + recomputed) * step + steps * back + query)


def slot_bytes(x: Features, sizes: tuple[int, ...], buffers: int) -> tuple[int, int]:
    """Bytes of one state, and of the activations and predictions at it, all tasks together."""
    each = x.shape[0] * x.element_size()
    return each * parameters_size(sizes, x) * (1 + buffers), each * activations_size(sizes, x)


kept_slot_bytes = lru_cache(DESIGNS_KEPT)(slot_bytes)
"""`slot_bytes`, remembered."""


def lay_out(call: Call, outer: MLP | None) -> MlpLayout:
    """The layout of a call on a perceptron, with the data of `outer` as its query set if there is one."""
    problem, optimizer = call.problem, call.optimizer
    assert isinstance(problem, MLP)
    native = OPTIMIZERS[optimizer.name]
    flags, buffers = native.bits(optimizer), native.kept(optimizer, call.settings)
    initial = _initial_buffers(call, problem, buffers)
    settings = native.ordered(call.settings)
    inputs = given_inputs(
        Data.of(problem),
        None if outer is None else Data.of(outer),
        pytree.tree_leaves(call.w0),
        initial,
        settings,
    )
    wanted = wanted_of(inputs, native.linear, bool(flags))
    inner = optimizer.name, flags, buffers, call.start
    return MlpLayout(call, problem, outer, wanted, choose_regime(problem), inputs, inner)


def choose_regime(problem: MLP) -> Regime:
    """A thread per task, or all threads on the products of one task after another (bitwise the same).

    On CUDA a block runs a task, whatever its size.
    """
    if problem.device.type == "cuda":
        return "tasks"
    large = problem.n * problem.parameters >= ROWS_WORK
    return "rows" if prod(problem.tasks) < FEW_TASKS and large else "tasks"


def join(w: Any, problem: MLP) -> Tensor:
    """The leaves of parameters, flat: [B, 1, P]."""
    tasks, whole = prod(problem.tasks), pytree.tree_leaves(problem.initial(w))
    flat = [leaf.reshape(tasks, prod(shape)) for leaf, shape in zip(whole, problem.shapes, strict=True)]
    return torch.cat(flat, -1).unsqueeze(1)


def _initial_point(w0: Any, problem: MLP) -> Tensor:
    """w0, flat: [B, 1, P], or [1, 1, P] where its leaves are of all tasks together."""
    leaves, shapes = pytree.tree_leaves(w0), problem.shapes
    if problem.tasks and all(leaf.ndim == len(shape) for leaf, shape in zip(leaves, shapes, strict=True)):
        return torch.cat([leaf.reshape(-1) for leaf in leaves]).view(1, 1, -1)
    return join(w0, problem)


def part(flat: Tensor, like: Any, problem: MLP) -> Any:
    """The inverse of `join`: views of [B, 1, P], in the pytree of `like`."""
    shapes = problem.shapes
    pieces = torch.split(flat.squeeze(1), [prod(shape) for shape in shapes], -1)
    leaves = [piece.reshape(*problem.tasks, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(like))


def _initial_buffers(call: Call, problem: MLP, buffers: int) -> Tensor | None:
    """[K, B, 1, P], or None where they are zeros."""
    if buffers == 0 or (call.state is None and not getattr(call.optimizer, "starts_above_zero", False)):
        return None
    leaves: Sequence[Any] = call.initial_buffers()
    return torch.stack([join([leaf[k] for leaf in leaves], problem) for k in range(buffers)])
