"""The normalised arguments of one unroll: what `arguments.normalise` makes, and both engines and explain take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.batches import Batches
from pybilevel.engine.callbacks import Callback
from pybilevel.engine.state import State
from pybilevel.engine.tasks import Tasks
from pybilevel.engine.trees import first_leaf
from pybilevel.methods import Method
from pybilevel.optimizers import Buffers, Optimizer
from pybilevel.problems import Problem
from pybilevel.schedules import Schedule

Backend = Literal["auto", "fused", "generic"]
Precision = Literal["fp32", "3xtf32", "tf32"]
Inner = Problem | Callable[..., Tensor]


class Call(NamedTuple):
    """One checked call of `unroll`. An engine is `reasons(call)`, `run(call) -> (w_T, State)` and `describe(call)`.

    Attributes:
        inner: a fused problem (already in float32 or float64) or a callable.
        w0: the initial parameters; None means the zeros of the problem. With a state: the state's w.
        hparams: the pytree given to a callable; None: the callable takes w alone.
        steps: T >= 0.
        optimizer: the inner optimizer.
        settings: its uniform settings by name, each () or of len(tasks) + 1 axes, expandable to [*tasks, steps].
        elementwise: its settings with a value a parameter, by name: one tensor [1 or steps, ...] a leaf of w0.
            Every name of `optimizer.settings()` is in exactly one of the two.
        method: how to differentiate.
        memory: "auto", a number of bytes, or a schedule; `memory.plan_for` makes the plan of it.
        state: where to go on from, or None.
        return_state: whether the caller wants the final state.
        backend: what the caller asked for.
        batches: one mini-batch a step, or None.
        mapped: the tasks of a callable, which w0 then has on axis 0 of every leaf, or None.
        callback: told every inner step, or None.
        precision: of the products of large linear problems on CUDA; see `engine.precision`.
        form: what a call like it will be known by, or None; see `engine.recipe`.
    """

    inner: Inner
    w0: Any
    hparams: Any
    steps: int
    optimizer: Optimizer
    settings: Mapping[str, Tensor]
    elementwise: Mapping[str, tuple[Tensor, ...]]
    method: Method
    memory: Literal["auto"] | int | Schedule
    state: State | None
    return_state: bool
    backend: Backend
    batches: Batches | None = None
    mapped: Tasks | None = None
    callback: Callback | None = None
    precision: Precision = "fp32"
    form: Any = None

    @property
    def problem(self) -> Problem | None:
        """The inner problem if it is a fused one."""
        return self.inner if isinstance(self.inner, Problem) else None

    @property
    def tasks(self) -> tuple[int, ...]:
        """The leading task dimensions *B; of a callable (B,) if it is mapped over tasks, else ()."""
        if isinstance(self.inner, Problem):
            return self.inner.tasks
        return () if self.mapped is None else (self.mapped.size,)

    @property
    def start(self) -> int:
        """The step counter at w0."""
        return 0 if self.state is None else self.state.step

    def initial(self) -> Any:
        """w0 as tensors with all dimensions (the zeros are made if w0 is None)."""
        return self.inner.initial(self.w0) if isinstance(self.inner, Problem) else self.w0

    def initial_buffers(self) -> tuple[Buffers, ...]:
        """The optimizer's buffers at w0, one tuple a leaf."""
        return self.buffers_of(pytree.tree_leaves(self.initial()))

    def buffers_of(self, leaves: Sequence[Tensor]) -> tuple[Buffers, ...]:
        """The optimizer's buffers at w0, whose leaves these are."""
        if self.state is not None:
            return self.state.buffers
        return tuple(self.optimizer.init(leaf.detach()) for leaf in leaves)

    @property
    def device(self) -> torch.device:
        """Where the unroll runs."""
        if isinstance(self.inner, Problem):
            return self.inner.device
        device: torch.device = first_leaf(self.w0).device
        return device
