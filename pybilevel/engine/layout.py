"""A call on a linear problem in the native operator's terms: flat tasks, coordinates and regime chosen, plan made."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.cost import COORDINATES, Coordinates, LinearSize, Wanted
from pybilevel.engine.itinerary import Itinerary, Storage, one_way, storage_of
from pybilevel.engine.select import (
    Regime,
    choose_coordinates,
    choose_regime,
    dual_rounds_well,
    normal_rounds_well,
)
from pybilevel.methods import Reverse
from pybilevel.ops import OPTIMIZERS, lanes, linear_scratch_bytes, padded_tasks, predictions_size, state_size
from pybilevel.problems import LinearProblem, Problem


class Layout(NamedTuple):
    """One call, ready for `linear_unroll`.

    Attributes:
        call: what was asked for.
        size: the sizes, tasks flattened.
        wanted: what the reverse half is asked for, predictions kept.
        coordinates: "primal" or "dual".
        excluded: what rules other coordinates out, in words.
        regime: "tasks", "rows" or "lanes".
        tensors: the operator's tensors, in the order of its schema.
        constants: loss, bias, scale, query_scale.
        inner: the inner optimizer's name, flags, number of buffers, and steps taken before.
    """

    call: Call
    size: LinearSize
    wanted: Wanted
    coordinates: Coordinates
    excluded: Mapping[Coordinates, str]
    regime: Regime
    tensors: tuple[Tensor | None, ...]
    constants: tuple[str, bool, float, float]
    inner: tuple[str, int, int, int]

    @property
    def why(self) -> str:
        """The reason for the coordinates, in words."""
        possible = [one for one in COORDINATES if one not in self.excluded]
        cost = ", ".join(f"{one} {self.size.flops(one, self.wanted):.3g}" for one in possible)
        reasons = "".join(f"; {reason}" for reason in self.excluded.values())
        return f"{self.coordinates}, by operations: {cost}{reasons}"

    @property
    def state_bytes(self) -> int:
        """Bytes of one state, all tasks together."""
        x, bias, buffers = self.tensors[0], self.constants[1], self.inner[2]
        assert x is not None
        scalars = state_size(x, self.size.c, bias, self.coordinates, self.regime, buffers)
        return padded_tasks(x, self.regime) * scalars * x.element_size()

    @property
    def prediction_bytes(self) -> int:
        """Bytes of the predictions of one state, all tasks together."""
        x = self.tensors[0]
        assert x is not None
        scalars = predictions_size(x, self.size.c, self.coordinates, self.regime)
        return padded_tasks(x, self.regime) * scalars * x.element_size()

    def storage(self, workspace_bytes: int | None = None) -> Storage:
        """What the call's memory request buys."""
        return storage_of(
            self.call, self.state_bytes, self.prediction_bytes, self.scratch_bytes, workspace_bytes
        )

    def scratch_bytes(self) -> int:
        """Bytes of scratch while the operator runs, all threads together."""
        return linear_scratch_bytes(*self.arguments(one_way(self.size.steps)))

    def flops(self, recomputed: int, kept: bool) -> int:
        """Operations of both halves, with so many steps run again, and predictions kept or made again."""
        wanted = self.wanted._replace(kept=kept)
        extra = recomputed * self.size.tasks * self.size.step_flops(self.coordinates)
        return self.size.flops(self.coordinates, wanted) + extra

    def itinerary(self) -> Itinerary:
        """The plan that the call's memory request buys; one way only, if nothing wants a gradient."""
        return self.storage().itinerary(self.size.steps) if self.wanted.reverse else one_way(self.size.steps)

    def arguments(self, itinerary: Itinerary) -> tuple[Any, ...]:
        """The operator's arguments, in the order of its schema."""
        loss, bias, scale, query_scale = self.constants
        optimizer, flags, buffers, start = self.inner
        return (
            *self.tensors,
            *(loss, self.coordinates, self.regime, optimizer, self.size.c, bias, scale, query_scale),
            *(flags, buffers, start),
            *(self.size.steps, itinerary.ops, itinerary.slots, itinerary.reversed, itinerary.keep),
            self.call.precision,
        )


def lay_out(call: Call, outer: LinearProblem | None) -> Layout:
    """The layout of a call on a linear problem, with the data of `outer` as its query set if there is one."""
    problem, optimizer = call.problem, call.optimizer
    assert isinstance(problem, LinearProblem)
    native = OPTIMIZERS[optimizer.name]
    tasks, flags, buffers = (
        prod(problem.tasks),
        native.bits(optimizer),
        native.kept(optimizer, call.settings),
    )
    m = 0 if outer is None else outer.n
    size = LinearSize(tasks, problem.n, m, problem.d, problem.c, call.steps)
    excluded = _excluded(call, problem, size, buffers)
    query = (None, None, None) if outer is None else data_of(outer)
    start = _start(call, problem, buffers)
    tensors = (*data_of(problem), *start, *native.ordered(settings_of(call, problem)), *query)
    wanted = wanted_of(tensors, native.linear, bool(flags))
    coordinates = choose_coordinates(size, wanted, excluded)
    return Layout(
        call,
        size,
        wanted,
        coordinates,
        excluded,
        choose_regime(size, coordinates, lanes(problem.x)),
        tensors,
        (problem.loss, problem.bias, problem.scale, 1.0 if outer is None else outer.scale),
        (optimizer.name, flags, buffers, call.start),
    )


def wanted_of(tensors: Sequence[Tensor | None], linear: bool, nesterov: bool) -> Wanted:
    """What autograd will ask for, of tensors in the order of the schema. (`settings`: the gradient.)"""
    if not torch.is_grad_enabled():
        return Wanted(False, False, False, False)
    needs = [t is not None and t.requires_grad for t in tensors]
    return Wanted(
        any(needs), needs[0], needs[0] or needs[2], not linear or needs[6] or (needs[7] and nesterov)
    )


def _excluded(call: Call, problem: LinearProblem, size: LinearSize, buffers: int) -> dict[Coordinates, str]:
    """Which coordinates cannot take the call, or would round worse, and why."""
    name = call.optimizer.name
    if not OPTIMIZERS[name].linear:
        return {
            "dual": f"dual coordinates need a step that is linear, which that of {name} is not",
            "normal": "normal ones do not have it",
        }
    found: dict[Coordinates, str] = {}
    if problem.loss != "squared":
        found["normal"] = "normal coordinates need the squared loss"
    elif not normal_rounds_well(size, problem.dtype, buffers > 0):
        found["normal"] = (
            "normal coordinates would round worse (float32, and n < 4 d or many steps with momentum)"
        )
    if call.state is not None and call.state.buffers[0]:
        found["dual"] = "an initial velocity need not lie in the span of the data"
    elif isinstance(call.method, Reverse) and call.method.truncate is not None:
        found["dual"] = "truncation cuts the graph at a primal point"
    elif not dual_rounds_well(size, problem.dtype, buffers > 0):
        found["dual"] = "dual coordinates would round worse (float32, many steps, n > d/2)"
    return found


def flatten(tensor: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """[*B, ...] -> [B, ...]. With one task dimension the tensor itself: even a view costs time, and a graph node."""
    return tensor if len(tasks) == 1 else tensor.reshape((prod(tasks), *tensor.shape[len(tasks) :]))


def restore(tensor: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """[B, ...] -> [*B, ...], the inverse of `flatten`."""
    return tensor if len(tasks) == 1 else tensor.reshape((*tasks, *tensor.shape[1:]))


def data_of(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [B, n, d], y [B, n] or [B, n, c], weights [B, n] with the task dimensions flattened."""
    tasks, y, weights = problem.tasks, problem.y, problem.weights
    return (
        flatten(problem.x, tasks),
        flatten(y if y.is_floating_point() else y.long(), tasks),
        None if weights is None else flatten(weights, tasks),
    )


def initial_l2(problem: Problem) -> Tensor:
    """l2 as [B]."""
    l2 = problem.l2
    return l2.expand(prod(problem.tasks)) if l2.ndim == 0 else flatten(l2, problem.tasks)


def _start(call: Call, problem: LinearProblem, buffers: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """l2 [B], w0 [B, D, c] and the initial buffers [K, B, D, c]."""
    return (
        initial_l2(problem),
        None if call.w0 is None else flatten(call.w0, problem.tasks),
        _initial_buffers(call, problem, buffers),
    )


def _initial_buffers(call: Call, problem: LinearProblem, buffers: int) -> Tensor | None:
    """[K, B, D, c], or None where they are zeros."""
    if buffers == 0 or (call.state is None and not getattr(call.optimizer, "starts_above_zero", False)):
        return None
    kept = [flatten(buffer, problem.tasks) for buffer in call.initial_buffers()[0][:buffers]]
    return kept[0].unsqueeze(0) if buffers == 1 else torch.stack(kept)


def settings_of(call: Call, problem: Problem) -> dict[str, Tensor]:
    """The settings as [B, T], by name."""
    shape = (*problem.tasks, call.steps)
    return {name: flatten(value.expand(shape), problem.tasks) for name, value in call.settings.items()}
