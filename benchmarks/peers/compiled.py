"""PyTorch under `torch.compile`: the steps of the eager contenders in Inductor's code; the rest stays eager.

A short trajectory is compiled whole. Of a longer one a single step is, as one does in practice: the compile time grows
with the unrolled graph (on two cores 12 s for 5 steps of few-shot-5w1s, 5 to 9 s for one step). The first run compiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Run
from benchmarks.peers.eager import (
    differentiate,
    outer_objective,
    step,
    step_closed_form,
    write_out,
    zeros,
)
from benchmarks.workloads import Bilevel, Shape, Workload

WHOLE_STEPS = 5  # trajectories up to here are one graph
BACKEND = "inductor"

Step = Callable[[Tensor, Tensor, Bilevel, str], tuple[Tensor, Tensor]]


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """The eager unroll: Dynamo traces `autograd.grad` away, so the compiled step needs no double backward."""
    steps = _compiled(step, shape)

    def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
        w, b = steps(*zeros(p, shape, requires_grad=True), p, loss)
        return outer_objective(p, w, b, loss, shape)

    return _explained(differentiate(value, workload, shape, inputs))


def build_closed_form(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """The eager unroll with the inner gradient written out."""
    steps = _compiled(step_closed_form, shape)

    def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
        # zeros that require gradients make the first step look like the others: one graph serves all
        w, b = steps(*zeros(p, shape, requires_grad=True), write_out(p, loss, shape), loss)
        return outer_objective(p, w, b, loss, shape)

    return _explained(differentiate(value, workload, shape, inputs))


def _compiled(one: Step, shape: Shape) -> Step:
    """All T steps of the trajectory: one compiled graph, or one compiled step T times."""
    together = shape.steps if shape.steps <= WHOLE_STEPS else 1

    def some(w: Tensor, b: Tensor, p: Bilevel, loss: str) -> tuple[Tensor, Tensor]:
        for _ in range(together):
            w, b = one(w, b, p, loss)
        return w, b

    graph = torch.compile(some, fullgraph=True, dynamic=False, backend=BACKEND)

    def every(w: Tensor, b: Tensor, p: Bilevel, loss: str) -> tuple[Tensor, Tensor]:
        for _ in range(shape.steps // together):
            w, b = graph(w, b, p, loss)
        return w, b

    return every


def _explained(run: Run) -> Run:
    """`run`, whose first call compiles; what this torch cannot trace is NotImplementedError with Dynamo's reason."""
    first = True

    def explained() -> object:
        nonlocal first
        if not first:
            return run()
        first = False
        try:
            # Dynamo counts recompilations by source line, which all cases share: eight would be the limit of a run
            with torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=1000):
                return run()
        except AttributeError as error:
            if "trace_autograd_ops" not in str(error):
                raise
            raise NotImplementedError("this torch cannot trace autograd.grad") from error
        except torch._dynamo.exc.Unsupported as error:
            raise NotImplementedError(str(error).splitlines()[0]) from error

    return explained
