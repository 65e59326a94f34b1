"""The spectral method: T steps on a least-squares problem at the cost of one eigendecomposition, whatever T is.

Gradient descent with constant settings on a quadratic is an affine recurrence, so w_T is a function of its matrix H:
`spectral_powers` has the function, `spectral_basis` the eigenvectors, `spectral_node` the autograd node and the
derivative. Here are the checks, the call and its account. docs/spectral.md has the measured rounding and times.
"""

import math

import torch
from torch import Tensor

from pybilevel.engine.call import Call
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.spectral_basis import rank
from pybilevel.engine.spectral_node import Form, QuadraticSteps, coordinates_kept
from pybilevel.engine.spectral_powers import products
from pybilevel.engine.state import State
from pybilevel.errors import BackendError, DivergenceError
from pybilevel.ops.tracing import untraced
from pybilevel.optimizers import SGD
from pybilevel.problems import LeastSquares

REMEDY = "use method=pb.Reverse()"


def check(call: Call) -> None:
    """Raise for a call that the spectral method cannot run: ValueError, or BackendError for backend="fused"."""
    if not isinstance(call.inner, LeastSquares):
        raise ValueError(
            f"method=pb.Spectral() needs inner to be a pb.LeastSquares, got a {type(call.inner).__name__}: only with a "
            f"squared loss is every step the same affine map of w; {REMEDY}"
        )
    if not isinstance(call.optimizer, SGD):
        raise ValueError(
            f"method=pb.Spectral() needs optimizer to be a pb.SGD, got {call.optimizer!r}: the steps of others are not "
            f"affine in w; {REMEDY}"
        )
    if call.batches is not None:
        raise ValueError(
            "batches are given: method=pb.Spectral() needs the same rows at every step, so that T steps are a power of "
            f"one; {REMEDY}"
        )
    if call.callback is not None:
        raise ValueError(
            f"callback is given: method=pb.Spectral() makes no steps that it could be told; {REMEDY}"
        )
    for name in call.elementwise:
        raise ValueError(
            f"{name} has a value a parameter: method=pb.Spectral() needs one that is the same for all parameters (a "
            f"number, () or [*B, 1]), or else the step is no function of one symmetric matrix; {REMEDY}"
        )
    for name, value in call.settings.items():
        if value.ndim and value.shape[-1] > 1:
            raise ValueError(
                f"{name} has {value.shape[-1]} values, one a step: method=pb.Spectral() needs settings that do not "
                f"vary with the step (a number, () or [*B, 1]), so that T steps are a power of one; {REMEDY}"
            )
    if call.backend == "fused":
        raise BackendError(
            "fused", ["method 'spectral' has no native kernel"], f'use backend="auto", or {REMEDY}'
        )


@untraced
def run(call: Call) -> tuple[Tensor, State]:
    """w_T and the final state of a checked call of T >= 1 steps.

    Raises:
        DivergenceError: on CPU, if w_T is not finite.
    """
    inputs = _inputs(call)
    try:
        w, velocity = QuadraticSteps.apply(_form(call, call.steps), *inputs)  # type: ignore[no-untyped-call]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if _finite(*inputs):
            raise
        raise DivergenceError(0 if not _finite(call.w0) else 1) from None  # eigh refuses a matrix with NaN
    if call.device.type == "cpu" and not _finite(w, velocity):
        raise DivergenceError(_first_bad_step(call, inputs))
    buffers = () if velocity is None else (velocity,)
    return w, State(w, (buffers,), call.start + call.steps, call.optimizer.name)


def describe(call: Call) -> Explanation:
    """How the spectral method would run a call: operations and bytes of both halves, hypergradients of x included."""
    problem = call.problem
    assert isinstance(problem, LeastSquares)
    r, width = rank(problem.n, problem.rows, problem.bias), problem.rows
    tasks = torch.Size(problem.tasks).numel()
    velocity = bool(call.initial_buffers()[0])
    return Explanation(
        backend="generic",
        coordinates="spectral",
        regime=f"functions of {r} eigenvalues of a matrix of {width}, mostly in torch operations; no trajectory",
        reasons=(),
        schedule="nothing is stored or recomputed: memory= has no effect",
        steps=call.steps,
        slots=0,
        recomputation=1.0,
        flops=tasks * _flops(problem.n, width, r, problem.c, call.steps, velocity),
        bytes_moved=None,
        peak_memory=tasks
        * _peak_bytes(problem.n, width, r, problem.c, call.steps, velocity, problem.dtype.itemsize),
    )


def _flops(n: int, width: int, r: int, c: int, steps: int, velocity: bool) -> int:
    """Operations of one task, both halves: the eigendecomposition, products with X, D x c products, pairs."""
    span = 4 * width * r * r if r < width else 0
    data = 2 * n * r * r + 6 * n * width * r + 2 * n * width * c + 4 * n * r * c
    thin = 2 * width * r * c * (8 if velocity else 4)
    return span + 9 * r**3 + data + thin + r * r * _pair_flops(steps, velocity)


def _pair_flops(steps: int, velocity: bool) -> int:
    """Operations for the divided differences of one pair, half of which are made (`spectral_powers.weighted`)."""
    return products(steps) * (46 if velocity else 8) // 2


def _peak_bytes(n: int, width: int, r: int, c: int, steps: int, velocity: bool, item: int) -> int:
    """What one task holds at the peak: while H is decomposed, at X U, the pairs, X_bar, or the settings' graph.

    `item` is the size of a number of the problem; where that is not said, numbers have 8 bytes. A bound, at most 1.7
    times what was measured (from 12 x 24 to 1000 x 50, c = 2 to 100).
    """
    kept, sides = coordinates_kept(n, width), 2 if r < width else 1
    start = 8 * (n * (width + c) + sides * r * width + 2 * r * r)
    start += 8 * n * (c if item < 8 else 0) + 8 * n * (r if kept or r < width else 0)
    again = 0 if kept else 8 * n * (width + r)
    pairs = item * (n * r + (7 if velocity else 3) * r * r)
    data = item * (n * (2 * r + sides * width) + (2 * sides - 1) * r * width + r * r)
    settings = item * n * r + 8 * r * (8 if velocity else 2) * products(steps)
    thin = 8 * (3 if velocity else 2) * sides * width * c + item * n * c
    return int(1.05 * (max(start, max(again, pairs, data, settings) + 8 * sides * r * width) + thin))


def _form(call: Call, steps: int) -> Form:
    assert isinstance(call.inner, LeastSquares) and isinstance(call.optimizer, SGD)
    return Form(steps, call.optimizer.nesterov, call.inner.bias)


def _inputs(call: Call) -> list[Tensor | None]:
    """The tensors of `QuadraticSteps`, as differentiable functions of those of the call."""
    problem, optimizer = call.inner, call.optimizer
    assert isinstance(problem, LeastSquares) and isinstance(optimizer, SGD)
    tasks = problem.tasks
    scale = problem.x.new_full((1, 1), problem.scale)
    if problem.weights is not None:
        scale = problem.weights.unsqueeze(-1) * problem.scale
    settings = {name: value.expand(*tasks, 1) for name, value in call.settings.items()}
    lr, momentum, decay = (settings.get(name) for name in ("lr", "momentum", "weight_decay"))
    v0 = call.state.buffers[0][0] if call.state is not None and momentum is not None else None
    decay = scale.new_zeros(*tasks, 1) if decay is None else decay
    return [problem.x, problem.y, scale, problem.l2.expand(tasks), call.w0, v0, lr, momentum, decay]


def _first_bad_step(call: Call, inputs: list[Tensor | None]) -> int:
    """The first t whose w_t is not finite, by bisection: once an iterate overflows, so do those after it."""
    if not _finite(call.w0):
        return 0
    detached = [None if t is None else t.detach() for t in inputs]
    good, bad = 0, call.steps
    while bad - good > 1:
        middle = (good + bad) // 2
        w, _ = QuadraticSteps.apply(_form(call, middle), *detached)  # type: ignore[no-untyped-call]
        good, bad = (middle, bad) if _finite(w) else (good, middle)
    return bad


def _finite(*tensors: Tensor | None) -> bool:
    # a finite sum is enough, and cheaper; one that is not may have overflowed
    given = [t for t in tensors if t is not None]
    return all(math.isfinite(t.sum().item()) or bool(t.isfinite().all()) for t in given)
