"""The one verb: differentiate through the training of an inner model."""

from collections.abc import Callable
from typing import Any, Literal

from pybilevel.engine import forward, fused, generic, implicit, spectral
from pybilevel.engine.arguments import normalise
from pybilevel.engine.call import Backend, Call, Inner, Precision
from pybilevel.engine.data import Data
from pybilevel.engine.state import State
from pybilevel.methods import Forward, Implicit, Method, Reverse, Spectral
from pybilevel.optimizers import Optimizer
from pybilevel.problems import Problem
from pybilevel.schedules import Schedule


def unroll(
    inner: Inner,
    w0: Any = None,
    hparams: Any = None,
    *,
    steps: int,
    optimizer: Optimizer,
    batches: Any = None,
    in_dims: Any = None,
    method: Method = Reverse(),  # noqa: B008 (a frozen value)
    memory: str | int | Schedule = "auto",
    state: State | None = None,
    return_state: bool = False,
    randomness: Literal["different", "same", "error"] = "different",
    callback: Callable[..., Any] | None = None,
    backend: Backend = "auto",
    precision: Precision = "fp32",
) -> Any:
    """The parameters w_T after T inner steps, as an ordinary autograd node.

        w_0 given,   w_t = Phi_t(w_{t-1}, lambda),   t = 1..T

    `E(w_T).backward()` fills the leaves behind w0, hparams and everything that `inner` and `optimizer` hold, tensors
    captured by closure or module included.

    Args:
        inner: a fused problem, such as `pb.SoftmaxRegression(x, y)`, or a callable `loss(w, hparams, batch)` that
            returns one number; without its second argument where hparams is None, without its last where batches is.
        w0: initial parameters, a tensor or a pytree of tensors; None: the zeros of a fused problem.
        hparams: a pytree, given to a callable as it is; its floating tensors are differentiated.
        steps: T >= 0. 0 returns w0, still differentiable.
        optimizer: such as `pb.SGD(lr, momentum)`.
        batches: one mini-batch a step, decided by type: a tensor, tuple or dict whose tensors have a leading steps
            axis; a list, or a data set with items, of length steps; or a pure function t -> batch, t counted from 0 in
            every call. The backward may ask for them again, so iterators and data loaders raise. Tensors in them that
            require a gradient get one (those of a list are stacked first). For fused problems: row indices
            [steps, *B, b], int64, and each step's loss is that of those rows, the mean over b. Not fused.
        in_dims: tasks, for callables (fused problems take leading dimensions): a pair (of w0, of hparams) with
            torch.vmap's meaning, an axis or None, or containers of these. `inner` is written for one task and mapped
            over B. Leaves of w0 without an axis are shared at the start; w_T has the tasks on axis 0, and so must the
            tensors of every batch: [steps, B, ...]. B comes from the first that has it. Settings are as for fused
            problems with *B = (B,), and those with a value a parameter [B, ...] or without B. With a state, its
            w has the axis 0.
        method: how to differentiate; `pb.Reverse(truncate=k)` goes back k steps, and gives zeros before them,
            `pb.Reverse(first_order=True)` without second derivatives of the inner loss;
            `pb.Forward()` carries tangents along: memory constant in T, for few hyperparameters; `pb.Implicit()`
            differentiates the solution that training approaches, at w_T alone (w0 gets zeros);
            `pb.Spectral()` does not step at all: least squares with constant settings only.
        memory: "auto" (everything if it fits in a quarter of the free memory, else that quarter), a number of bytes
            or "2GiB", or a schedule `pb.StoreAll()`, `pb.Revolve(checkpoints)`, `pb.Periodic(every)`. Never changes
            results. A budget holds the stored states and the workspace of one step (in the generic engine
            measured, where the budget is near); not the results, nor the copies that fused kernels make of inputs with
            strided rows. Where the graphs of all steps fit in it ("auto": in 64 MiB) the generic engine keeps them,
            as plain PyTorch does, and runs no step twice.
        state: go on from what `return_state=True` gave, optimizer buffers included; leave w0 None then.
        return_state: return (w_T, state).
        randomness: torch.vmap's meaning, over the tasks of `in_dims`.
        callback: called with a `pb.InnerStep` (step, loss, gradient, its norm, w) right after every step of the forward
            pass, and never again when steps are recomputed; `pb.Recorder()` keeps the curves. If it returns True, the
            unroll ends after this step: values and hypergradients are those of as many `steps`, within the same memory
            (one sweep of recomputation more, at most). Its method `on_reverse`, if it has one, is called with a
            `pb.ReverseStep` (step, cotangent, its norm) at every step of each backward. Not fused.
        backend: "auto", "fused" (raises if it cannot) or "generic".
        precision: of the products of a large linear problem with its features, in float32 on CUDA: "fp32"; "3xtf32",
            three tensor-core products, about as exact; "tf32", one, of operands rounded to 10 bits (relative error
            5e-4 each). Anywhere else only "fp32". No GPU has run it yet: `benchmarks/gpu.sh precision` tells what pays.

    Returns:
        w_T like w0 (half and bfloat16 problems are computed and returned in float32), or (w_T, State).

    A loss that draws random numbers (dropout), from torch's generators or its own, draws what a plain loop would have
    drawn under the same seed. The backward replays the same draws and leaves the generators alone. Each stored state
    then holds 5 kB more, and `State` goes on with the draws of an uninterrupted run.

    A loss that torch.compile made (or a `pb.ModuleLoss` of a compiled module or loss) runs compiled in steps forward
    whose graph is not kept, and as the code it was made of in the backward, since compiled functions have no second
    one; with tasks, random numbers or carried buffers it runs uncompiled.

    Time: forward T gradients of the inner loss; backward about 3 T, and the plan's recomputed steps. Memory: the
    slots of the plan and one step's workspace.

    Raises:
        ValueError, TypeError: an argument is wrong; the text names it, its value and the remedy.
        NotImplementedError: in the backward of a hypergradient (create_graph=True): it cannot be differentiated again.
        BackendError: backend="fused" cannot run the call; the text lists every reason.
        DivergenceError: an iterate is not finite (checked on CPU only); `.step` is the first.

    Source: Franceschi et al., Bilevel Programming for Hyperparameter Optimization and Meta-Learning, ICML 2018.
    """
    form = None
    usual = randomness == "different" and not return_state
    usual = usual and all(one is None for one in (hparams, batches, in_dims, state, callback))
    if usual and isinstance(inner, Problem):
        given = {"method": method, "memory": memory, "backend": backend, "precision": precision}
        asked = {"steps": steps, "optimizer": optimizer, **given}
        results, form = fused.again(Data.of(inner), None, w0, asked)
        if results is not None:
            return fused.unpack(results.w, inner, w0)
    call = normalise(
        inner,
        w0,
        hparams,
        steps=steps,
        optimizer=optimizer,
        batches=batches,
        in_dims=in_dims,
        method=method,
        memory=memory,
        state=state,
        return_state=return_state,
        randomness=randomness,
        callback=callback,
        backend=backend,
        precision=precision,
    )
    w, last = dispatch(call._replace(form=form))
    return (w, last) if call.return_state else w


def dispatch(call: Call) -> tuple[Any, State]:
    """Run a call by its method and backend: the fused kernels where they can, else the generic engine."""
    run: Callable[[Call], tuple[Any, State]]
    if isinstance(call.method, Spectral) and call.steps:
        run = spectral.run
    else:
        otherwise = {Forward: forward.run, Implicit: implicit.run}.get(type(call.method), generic.run)
        run = otherwise if fused.against(call) else fused.run
    return run(call)
