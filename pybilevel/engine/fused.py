"""The fused engine: a call on a linear problem or a perceptron, as one native operator each way."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel import _C
from pybilevel.engine import perceptron, recipe
from pybilevel.engine.call import Call
from pybilevel.engine.data import Data
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.itinerary import native_plan_bytes
from pybilevel.engine.layout import BUFFERS0, Layout, lay_out, restore
from pybilevel.engine.native import CUDA, NATIVE, counts_steps, has_kernel
from pybilevel.engine.perceptron import MlpLayout
from pybilevel.engine.precision import describe as describe_precision
from pybilevel.engine.recipe import CallForm
from pybilevel.engine.state import State
from pybilevel.errors import BackendError, DivergenceError
from pybilevel.methods import Reverse
from pybilevel.ops import LinearResults, linear_unroll, mlp_unroll
from pybilevel.ops.node import Outcome
from pybilevel.problems import MLP, LinearProblem, Problem
from pybilevel.schedules import Offload, plan_bytes

LOSSES = frozenset(loss for loss, _ in _C.registry()["problems"])
"""The row losses that have native kernels."""

REGIMES = {
    "tasks": "a thread per task",
    "rows": "all threads on the rows of one task after another",
    "lanes": "a task per SIMD lane, the threads on different pairs of packs",
}

CUDA_REGIMES = {
    "tasks": "a block per task (linear: all blocks on one after another where they are few and large for the device)",
    "rows": "all blocks on one task after another",
}

Results = LinearResults | Outcome
"""What a call gives: as an operator returns it, or as much of it as a call asks for that is remembered."""


def reasons(call: Call) -> list[str]:
    """Why the fused kernels cannot run a call; empty if they can."""
    problem = call.problem
    if problem is None:
        return [f"inner is a {type(call.inner).__name__}, not a fused problem such as pb.SoftmaxRegression"]
    found = []
    if problem.loss not in LOSSES:
        found.append(f"the loss {problem.loss!r} has no native kernel")
    found += _optimizer_reasons(call)
    if not isinstance(call.method, Reverse):
        found.append(f"method {call.method.name!r} has no native kernel (need pb.Reverse)")
    if isinstance(call.method, Reverse) and call.method.first_order:
        found.append("method=pb.Reverse(first_order=True) has no native kernel (need the exact gradient)")
    if isinstance(call.memory, Offload):
        found.append("memory=pb.Offload has no native kernel (need states on the device)")
    if call.batches is not None:
        found.append("batches are given (need every row at every step)")
    if call.callback is not None:
        found.append("a callback is given (the fused kernels run all steps in one go)")
    found += [f"{name} has a value a parameter (need one a step or a task)" for name in call.elementwise]
    if problem.dtype not in (torch.float32, torch.float64):
        found.append(f"dtype {problem.dtype} (need float32 or float64)")
    return found + _device_reasons(problem)


def against(call: Call) -> tuple[str, ...]:
    """Why a call goes to the generic engine instead; empty if it runs here. The one place that decides it.

    Raises:
        BackendError: backend="fused" was asked for and cannot be.
    """
    if call.steps == 0:  # nothing to fuse, and the generic engine ties w0 to every input
        return ("steps = 0: w0 is returned",)
    if call.backend == "generic":
        return ('backend="generic" was asked for',)
    found = reasons(call)
    if found and call.backend == "fused":
        raise BackendError("fused", found, 'use backend="auto" or "generic", or change what the reasons name')
    return tuple(found)


def _optimizer_reasons(call: Call) -> list[str]:
    optimizer, state = call.optimizer, call.state
    if not has_kernel(optimizer):
        classes = ", ".join(f"pb.{one.__name__}" for one in NATIVE)
        return [f"the optimizer {optimizer.name!r} has no native kernel (need {classes})"]
    if state is None or not counts_steps(optimizer):
        return []
    count = state.buffers[0][-1]
    if not count.is_cpu or torch.compiler.is_compiling() or int(count) == state.step:
        return []
    return [
        f"the optimizer's state counts {int(count)} steps, but state.step is {state.step} (need the same)"
    ]


def _device_reasons(problem: Problem) -> list[str]:
    device = problem.device
    if device.type == "cpu" or (device.type == "cuda" and CUDA):
        return []
    return [f"device {device} (this build has kernels for {'cpu and cuda' if CUDA else 'cpu'})"]


def run(call: Call) -> tuple[Any, State]:
    """w_T and the final state. DivergenceError on CPU, if an iterate is not finite."""
    results = execute(call, None)
    w, *kept = (unpack(flat, call.inner, call.w0) for flat in (results.w, *results.buffers.unbind()))
    done, leaves = call.start + call.steps, 1 if isinstance(w, Tensor) else len(pytree.tree_leaves(w))
    columns = [pytree.tree_leaves(buffer) for buffer in kept]
    if counts_steps(call.optimizer):
        columns.append([torch.full((), done, dtype=torch.float32, device=call.device)] * leaves)
    buffers = tuple(zip(*columns, strict=True)) if columns else ((),) * leaves
    return w, State(w, buffers, done, call.optimizer.name)


def unpack(w: Tensor, problem: Any, w0: Any) -> Any:
    """Parameters, or a buffer of their size, as `execute` returns them: as the caller has w0."""
    return perceptron.part(w, w0, problem) if isinstance(problem, MLP) else w


def again(
    inner: Data,
    outer: Data | None,
    w0: Any,
    options: Mapping[str, Any],
    *,
    look: bool = False,
    objective: bool = False,
) -> tuple[Results | None, CallForm | None]:
    """What `execute` returns for a call of a form that is remembered, or None; and its form, if it has one.

    `look`: whether nobody has looked at the labels yet. None if one is out of range. `objective`: without the model.

    Raises:
        DivergenceError: on CPU, if an iterate is not finite.
    """
    form = recipe.form_of(inner, outer, w0, options)
    if form is None or (results := recipe.again(form, look, objective)) is None:
        return None, form
    return _sound(results), form


def execute(call: Call, outer: Problem | None) -> Results:
    """Run a call; with the rows of `outer` (its l2 is not looked at) as the outer objective, or without one.

    `outer` is a problem like the inner one. Results have the caller's task dimensions, but for w and buffers of a
    perceptron, see `unpack`.

    Raises:
        DivergenceError: on CPU, if an iterate is not finite.
    """
    layout = layout_of(call, outer)
    unroll = mlp_unroll if isinstance(layout, MlpLayout) else linear_unroll
    if torch.compiler.is_compiling():
        return _restored(unroll(*layout.arguments(layout.itinerary())), call, outer)
    itinerary = layout.itinerary()
    constants = layout.constants(itinerary)
    recipe.remember(call, itinerary, layout.inputs[BUFFERS0], constants)
    return _sound(unroll(*layout.inputs, *constants))


def _restored(results: LinearResults, call: Call, outer: Problem | None) -> LinearResults:
    """What an operator returns, with the caller's task dimensions."""
    tasks, w, buffers = call.tasks, results.w, results.buffers
    if isinstance(call.problem, LinearProblem):
        w = restore(w, tasks)
        buffers = buffers.reshape(len(buffers), *w.shape)
    loss = results.outer if outer is None else restore(results.outer, tasks)
    logits = restore(results.logits, tasks)
    return results._replace(w=w, buffers=buffers, outer=loss, logits=logits)


def _sound(results: Results) -> Results:
    if results.bad >= 0:
        raise DivergenceError(results.bad)
    return results


def layout_of(call: Call, outer: Problem | None) -> Layout | MlpLayout:
    """The layout of a call on a fused problem, with the data of `outer`, one like it, as its query set."""
    if isinstance(call.problem, MLP):
        assert outer is None or isinstance(outer, MLP)
        return perceptron.lay_out(call, outer)
    assert outer is None or isinstance(outer, LinearProblem)
    return lay_out(call, outer)


def describe(call: Call) -> Explanation:
    """How the fused kernels would run a call."""
    return describe_layout(layout_of(call, None))


def describe_layout(layout: Layout | MlpLayout) -> Explanation:
    """The account of a call that is laid out, query set included."""
    call = layout.call
    scratch = layout.scratch_bytes() + native_plan_bytes(call)
    storage = layout.storage(scratch)
    plan = storage.schedule.plan(call.steps)
    tensors = [t for t in layout.tensors if t is not None]
    regimes = CUDA_REGIMES if call.device.type == "cuda" else REGIMES
    return Explanation(
        backend="fused",
        coordinates=layout.coordinates if isinstance(layout, Layout) else None,
        precision=describe_precision(call.precision, layout.coordinates, tensors[0].dtype)
        if isinstance(layout, Layout)
        else None,
        regime=f"{regimes[layout.regime]}; {layout.why}",
        reasons=(),
        schedule=storage.schedule.describe()
        + (", with the predictions of every state" if storage.keep else ""),
        steps=call.steps,
        slots=plan.slots,
        recomputation=plan.factor,
        flops=layout.flops(plan.recomputed, storage.keep),
        bytes_moved=2 * sum(t.numel() * t.element_size() for t in tensors),
        peak_memory=plan_bytes(plan.slots, storage.slot_bytes, scratch),
    )
