"""A call on a linear problem in the native operator's terms: coordinates and regime chosen, plan made."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.cost import COORDINATES, Coordinates, LinearSize, Wanted
from pybilevel.engine.data import Data, given_inputs
from pybilevel.engine.itinerary import Itinerary, Storage, one_way, storage_of
from pybilevel.engine.select import (
    Regime,
    choose_coordinates,
    choose_regime,
    dual_rounds_well,
    normal_rounds_well,
)
from pybilevel.methods import Reverse
from pybilevel.ops import (
    OPTIMIZERS,
    Features,
    lanes,
    linear_scratch_bytes,
    padded_tasks,
    predictions_size,
    state_size,
)
from pybilevel.problems import LinearProblem, Problem

W0, BUFFERS0 = 4, 5
"""The places of initial parameters and buffers among the operator's tensors."""

DESIGNS_KEPT = 1024
"""How many designs are kept for calls of the same form; one takes about 1 kB."""


class Form(NamedTuple):
    """All that a design depends on: no tensor, no budget, no number of threads.

    Attributes:
        size: the sizes, tasks flattened.
        x: what kernels pad to.
        wanted: what the reverse half is asked for, predictions kept.
        loss, bias: of the problem.
        optimizer: the name of the inner optimizer.
        buffers: how many of the size of w it keeps.
        carried: whether the first of them starts from a state.
        truncated: whether the reverse half stops before the first step.
    """

    size: LinearSize
    x: Features
    wanted: Wanted
    loss: str
    bias: bool
    optimizer: str
    buffers: int
    carried: bool
    truncated: bool


class Design(NamedTuple):
    """What is chosen for a form.

    Attributes:
        coordinates: "primal", "dual" or "normal".
        excluded: what rules other coordinates out, in words.
        regime: "tasks", "rows" or "lanes".
        state_bytes, prediction_bytes: of one state and of the predictions at it, all tasks together.
    """

    coordinates: Coordinates
    excluded: Mapping[Coordinates, str]
    regime: Regime
    state_bytes: int
    prediction_bytes: int


def make_design(
    form: Form,
    coordinates_by: Callable[..., Coordinates],
    regime_by: Callable[..., Regime],
) -> Design:
    """The design of a form by these rules of choice, `choose_coordinates` and `choose_regime` or their like."""
    size, x = form.size, form.x
    excluded = _excluded(form)
    coordinates = coordinates_by(size, form.wanted, excluded)
    regime = regime_by(size, coordinates, lanes(x))
    each = padded_tasks(x, regime) * x.element_size()
    state = state_size(x, size.c, form.bias, coordinates, regime, form.buffers)
    predictions = predictions_size(x, size.c, coordinates, regime)
    return Design(coordinates, excluded, regime, each * state, each * predictions)


kept_design = lru_cache(DESIGNS_KEPT)(make_design)
"""`make_design`, remembered: it is a function of its arguments alone."""


class Layout(NamedTuple):
    """One call, ready for `linear_unroll`.

    Attributes:
        call: what was asked for.
        outer: the problem whose data are the query set, or None.
        form, design: what it looks like, and what was chosen for it.
        inputs: its tensors as the caller has them, in the order of the operator's schema.
        inner: the inner optimizer's name, flags, number of buffers, and steps taken before.
    """

    call: Call
    outer: LinearProblem | None
    form: Form
    design: Design
    inputs: tuple[Tensor | None, ...]
    inner: tuple[str, int, int, int]

    @property
    def coordinates(self) -> Coordinates:
        """ "primal", "dual" or "normal"."""
        return self.design.coordinates

    @property
    def regime(self) -> Regime:
        """ "tasks", "rows" or "lanes"."""
        return self.design.regime

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The operator's tensors, in the order of its schema."""
        problem, w0, buffers = self.call.problem, self.inputs[W0], self.inputs[BUFFERS0]
        assert problem is not None
        start = None if w0 is None else flatten(w0, problem.tasks), buffers
        settings = flat_settings(self.call, problem)
        return *flat_data(problem), flat_l2(problem), *start, *settings, *flat_data(self.outer)

    @property
    def why(self) -> str:
        """The reason for the coordinates, in words."""
        excluded, size = self.design.excluded, self.form.size
        possible = [one for one in COORDINATES if one not in excluded]
        cost = ", ".join(f"{one} {size.flops(one, self.form.wanted):.3g}" for one in possible)
        reasons = "".join(f"; {reason}" for reason in excluded.values())
        return f"{self.coordinates}, by operations: {cost}{reasons}"

    @property
    def state_bytes(self) -> int:
        """Bytes of one state, all tasks together."""
        return self.design.state_bytes

    @property
    def prediction_bytes(self) -> int:
        """Bytes of the predictions of one state, all tasks together."""
        return self.design.prediction_bytes

    def storage(self, workspace_bytes: int | None = None) -> Storage:
        """What the call's memory request buys."""
        return storage_of(
            self.call, self.state_bytes, self.prediction_bytes, self.scratch_bytes, workspace_bytes
        )

    def scratch_bytes(self) -> int:
        """Bytes of scratch while the operator runs, all threads together."""
        return linear_scratch_bytes(*self.arguments(one_way(self.call.steps)))

    def flops(self, recomputed: int, kept: bool) -> int:
        """Operations of both halves, with so many steps run again, and predictions kept or made again."""
        size, wanted = self.form.size, self.form.wanted._replace(kept=kept)
        extra = recomputed * size.tasks * size.step_flops(self.coordinates)
        return size.flops(self.coordinates, wanted) + extra

    def itinerary(self) -> Itinerary:
        """The plan that the call's memory request buys; one way only, if nothing wants a gradient."""
        steps = self.call.steps
        return self.storage().itinerary(steps) if self.form.wanted.reverse else one_way(steps)

    def arguments(self, itinerary: Itinerary) -> tuple[Any, ...]:
        """The operator's arguments, in the order of its schema."""
        return (*self.tensors, *self.constants(itinerary))

    def constants(self, itinerary: Itinerary) -> tuple[Any, ...]:
        """Those that are no tensors of the call."""
        problem, form, (optimizer, flags, buffers, start) = self.call.problem, self.form, self.inner
        assert problem is not None
        scales = problem.scale, 1.0 if self.outer is None else self.outer.scale
        return (
            *(form.loss, self.coordinates, self.regime, optimizer, form.size.c, form.bias, *scales),
            *(flags, buffers, start),
            *(self.call.steps, itinerary.ops, itinerary.slots, itinerary.reversed, itinerary.keep),
            self.call.precision,
        )


def lay_out(call: Call, outer: LinearProblem | None) -> Layout:
    """The layout of a call on a linear problem, with the data of `outer` as its query set if there is one."""
    problem, optimizer = call.problem, call.optimizer
    assert isinstance(problem, LinearProblem)
    native = OPTIMIZERS[optimizer.name]
    flags, buffers = native.bits(optimizer), native.kept(optimizer, call.settings)
    settings = native.ordered(call.settings)
    inputs = given_inputs(
        Data.of(problem),
        None if outer is None else Data.of(outer),
        call.w0,
        _initial_buffers(call, problem, buffers),
        settings,
    )
    tasks, m = prod(problem.tasks), 0 if outer is None else outer.n
    form = Form(
        LinearSize(tasks, problem.n, m, problem.d, problem.c, call.steps),
        Features((tasks, problem.n, problem.d), problem.dtype, problem.x.is_cuda),
        wanted_of(inputs, native.linear, bool(flags)),
        problem.loss,
        problem.bias,
        optimizer.name,
        buffers,
        call.state is not None and bool(call.state.buffers[0]),
        isinstance(call.method, Reverse) and call.method.truncate is not None,
    )
    # torch.compile looks into what is remembered, and its sizes may be symbols
    design_of = make_design if torch.compiler.is_compiling() else kept_design
    design = design_of(form, choose_coordinates, choose_regime)
    return Layout(call, outer, form, design, inputs, (optimizer.name, flags, buffers, call.start))


def wanted_of(inputs: Sequence[Any], linear: bool, nesterov: bool) -> Wanted:
    """What autograd will ask for, of inputs in the order of the schema. (`settings`: the gradient.)"""
    if not torch.is_grad_enabled():
        return Wanted(False, False, False, False)
    needs = [
        x is not None
        and (x.requires_grad if isinstance(x, Tensor) else any(leaf.requires_grad for leaf in x))
        for x in inputs
    ]
    return Wanted(
        any(needs), needs[0], needs[0] or needs[2], not linear or needs[6] or (needs[7] and nesterov)
    )


def _excluded(form: Form) -> dict[Coordinates, str]:
    """Which coordinates cannot take the call, or would round worse, and why."""
    size, dtype, name, momentum = form.size, form.x.dtype, form.optimizer, form.buffers > 0
    if not OPTIMIZERS[name].linear:
        return {
            "dual": f"dual coordinates need a step that is linear, which that of {name} is not",
            "normal": "normal ones do not have it",
        }
    found: dict[Coordinates, str] = {}
    if form.loss != "squared":
        found["normal"] = "normal coordinates need the squared loss"
    elif not normal_rounds_well(size, dtype, momentum):
        found["normal"] = (
            "normal coordinates would round worse (float32, and many steps with momentum or n < 4 d)"
        )
    if form.carried:
        found["dual"] = "an initial velocity need not lie in the span of the data"
    elif form.truncated:
        found["dual"] = "truncation cuts the graph at a primal point"
    elif not dual_rounds_well(size, dtype, momentum):
        found["dual"] = "dual coordinates would round worse (float32, many steps, n > d/2)"
    return found


def flatten(tensor: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """[*B, ...] -> [B, ...]. With one task dimension the tensor itself: even a view costs time, and a graph node."""
    return tensor if len(tasks) == 1 else tensor.reshape((prod(tasks), *tensor.shape[len(tasks) :]))


def restore(tensor: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """[B, ...] -> [*B, ...], the inverse of `flatten`."""
    return tensor if len(tasks) == 1 else tensor.reshape((*tasks, *tensor.shape[1:]))


def flat_data(problem: Problem | None) -> tuple[Tensor | None, ...]:
    """x [B, n, d], y [B, n] or [B, n, c], weights [B, n] with the task dimensions flattened; None of None."""
    if problem is None:
        return None, None, None
    tasks, y, weights = problem.tasks, problem.y, problem.weights
    return (
        flatten(problem.x, tasks),
        flatten(y if y.is_floating_point() else y.long(), tasks),
        None if weights is None else flatten(weights, tasks),
    )


def flat_l2(problem: Problem) -> Tensor:
    """l2 as [B]."""
    l2 = problem.l2
    return l2.expand(prod(problem.tasks)) if l2.ndim == 0 else flatten(l2, problem.tasks)


def flat_settings(call: Call, problem: Problem) -> list[Tensor | None]:
    """The settings as [B, T], in the operator's order."""
    shape = (*problem.tasks, call.steps)
    flat = {name: flatten(value.expand(shape), problem.tasks) for name, value in call.settings.items()}
    return OPTIMIZERS[call.optimizer.name].ordered(flat)


def _initial_buffers(call: Call, problem: LinearProblem, buffers: int) -> Tensor | None:
    """[K, B, D, c], or None where they are zeros."""
    if buffers == 0 or (call.state is None and not getattr(call.optimizer, "starts_above_zero", False)):
        return None
    kept = [flatten(buffer, problem.tasks) for buffer in call.initial_buffers()[0][:buffers]]
    return kept[0].unsqueeze(0) if buffers == 1 else torch.stack(kept)
