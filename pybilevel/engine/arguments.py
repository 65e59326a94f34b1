"""The arguments of `unroll`: every check before anything is computed, and the `Call` that comes of them."""

from collections.abc import Callable
from inspect import signature
from operator import index
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.checks import check_floating
from pybilevel.engine import fused, implicit, spectral
from pybilevel.engine.batches import Batches, check_rows
from pybilevel.engine.batches import normalise as normalise_batches
from pybilevel.engine.call import Backend, Call, Inner, Precision
from pybilevel.engine.precision import PRECISIONS
from pybilevel.engine.precision import check as check_rounding
from pybilevel.engine.state import State
from pybilevel.engine.tasks import Tasks
from pybilevel.engine.tasks import normalise as normalise_tasks
from pybilevel.engine.trees import first_leaf
from pybilevel.methods import Implicit, Method, Reverse, Spectral
from pybilevel.optimizers import Optimizer
from pybilevel.optimizers.settings import is_elementwise, resolve, resolve_elementwise
from pybilevel.problems import ModuleLoss, Problem
from pybilevel.schedules import Schedule, parse_bytes

BACKENDS = ("auto", "fused", "generic")
RANDOMNESS = ("different", "same", "error")


def normalise(
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
) -> Call:
    """The arguments of `unroll`, checked and in one form. The checks read tensors on CPU only, and never sync."""
    _check_callback(callback)
    _check_choice("backend", backend, BACKENDS)
    _check_choice("randomness", randomness, RANDOMNESS)
    _check_choice("precision", precision, PRECISIONS)
    steps = _steps(steps)
    _check_method(method)
    _check_optimizer(optimizer)
    inner = _inner(inner, hparams)
    w0 = _initial(inner, w0, state)
    if state is not None:
        state.check(optimizer)
    found = _batches(batches, inner, steps)
    if steps and not isinstance(inner, Problem):
        _check_signature(inner, hparams is not None, found is not None)
    mapped: Tasks | None = None
    if in_dims is not None:
        _check_mappable(inner, in_dims)
        w0, mapped = normalise_tasks(
            in_dims, w0, hparams, found, steps=steps, resumed=state is not None, randomness=randomness
        )
    settings, elementwise = _settings(inner, w0, mapped, steps, optimizer)
    call = Call(
        inner=inner,
        w0=w0,
        hparams=hparams,
        steps=steps,
        optimizer=optimizer,
        settings=settings,
        elementwise=elementwise,
        method=method,
        memory=_memory(memory),
        state=state,
        return_state=bool(return_state),
        backend=backend,
        batches=found,
        mapped=mapped,
        callback=callback,
        precision=precision,
    )
    if precision != "fp32":
        check_rounding(call, fused.reasons(call))
    if isinstance(method, Spectral):
        spectral.check(call)
    if isinstance(method, Implicit):
        implicit.check(call)
    return call


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_callback(callback: Any) -> None:
    if callback is None:
        return
    if isinstance(callback, type) or not callable(callback):
        raise TypeError(f"callback must be a function of pb.InnerStep or a pb.Recorder(), got {callback!r}")


def _batches(batches: Any, inner: Inner, steps: int) -> Batches | None:
    if batches is None:
        return None
    found = normalise_batches(batches, steps)
    if isinstance(inner, Problem):
        check_rows(found, inner, steps)
    return found


def _check_signature(inner: Callable[..., Any], hparams: bool, batches: bool) -> None:
    """Raise TypeError unless `inner` (of a ModuleLoss, its loss) takes the arguments that a step gives it."""
    called, roles = inner, ["w", *["hparams"] * hparams, *["batch"] * batches]
    if isinstance(inner, ModuleLoss):
        called, roles[0] = inner.loss, "model"
    elif isinstance(inner, torch.nn.Module):
        called = inner.forward
    if type(called) is FunctionType and _takes(called, len(roles)):
        return  # `signature` takes 20 us
    try:
        expected = signature(called)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        expected.bind(*roles)
    except TypeError as error:
        raise TypeError(
            f"inner is called as loss({', '.join(roles)}), but takes {expected} ({error}): hparams come second "
            "where there are any, a batch last where there are batches; a torch.nn.Module needs a loss, "
            "pb.ModuleLoss(net, loss)"
        ) from None


def _takes(function: FunctionType, count: int) -> bool:
    """Whether a plain Python function surely takes so many positional arguments."""
    code, optional = function.__code__, len(function.__defaults__ or ())
    plain = not code.co_kwonlyargcount and not function.__dict__
    return plain and code.co_argcount - optional <= count <= code.co_argcount


def _check_mappable(inner: Inner, in_dims: Any) -> None:
    if isinstance(inner, Problem):
        raise ValueError(
            f"in_dims is {in_dims!r}, but a fused problem has its tasks on the leading axes of x: leave it None"
        )


def _steps(steps: Any) -> int:
    try:
        number = index(steps)
    except TypeError:
        raise TypeError(f"steps must be an int >= 0, got {steps!r}: write int(steps)") from None
    if isinstance(steps, bool):
        raise TypeError(f"steps must be an int >= 0, got {steps!r}: write the number of inner steps")
    if number < 0:
        raise ValueError(f"steps must be >= 0, got {number}: 0 returns w0, T runs T inner steps")
    return number


def _check_method(method: Any) -> None:
    # `spectral.check` and `implicit.check` look at the rest of the call
    if not isinstance(method, Method):
        raise TypeError(f"method must be a method such as pb.Reverse(), got {method!r}")


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is a torch.optim.{type(optimizer).__name__}, which changes its parameters in place: pass "
            "pb.from_torch(optimizer), which has its settings, or build one, such as pb.SGD(lr=0.1, momentum=0.9)"
        )
    if isinstance(optimizer, type) or not all(
        hasattr(optimizer, part) for part in ("name", "settings", "init", "step")
    ):
        raise TypeError(f"optimizer must be an instance such as pb.SGD(lr=0.1), got {optimizer!r}")


def _inner(inner: Any, hparams: Any) -> Inner:
    if isinstance(inner, Problem):
        if hparams is not None:
            raise ValueError(
                "hparams is given but a fused problem holds its own tensors (x, y, weights, l2): build the problem "
                "from your hyperparameters and leave hparams None"
            )
        return inner.promoted()
    if not callable(inner):
        raise TypeError(
            f"inner must be a problem such as pb.SoftmaxRegression(x, y) or a loss(w, hparams), got {inner!r}"
        )
    return inner  # type: ignore[no-any-return]


def _initial(inner: Inner, w0: Any, state: State | None) -> Any:
    if state is not None:
        if not isinstance(state, State):
            raise TypeError(
                f"state must be a pb.State, got {type(state).__name__}: pass what return_state=True gave"
            )
        if w0 is not None:
            raise ValueError("both w0 and state are given: leave w0 None to go on from state.w")
        w0 = state.w
    if isinstance(inner, Problem):
        return inner.check_w0(w0)
    if w0 is None:
        raise ValueError(
            "w0 is None: a callable inner loss needs initial parameters, a tensor or a pytree of tensors "
            "(of a pb.ModuleLoss: inner.parameters())"
        )
    _check_pytree_w0(w0)
    return w0


def _check_pytree_w0(w0: Any) -> None:
    leaves = pytree.tree_leaves(w0)
    if not leaves:
        raise ValueError(f"w0 holds no tensors: {w0!r}")
    for i, leaf in enumerate(leaves):
        name = "w0" if leaf is w0 else f"leaf {i} of w0"
        check_floating(name, leaf)
        if leaf.dtype != leaves[0].dtype:
            raise TypeError(
                f"{name} is {leaf.dtype} but leaf 0 is {leaves[0].dtype}: cast one with .to(dtype)"
            )
        if leaf.device != leaves[0].device:
            raise ValueError(f"{name} is on {leaf.device} but leaf 0 is on {leaves[0].device}: move one")


def _settings(
    inner: Inner, w0: Any, mapped: Tasks | None, steps: int, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
    uniform: dict[str, Tensor] = {}
    elementwise: dict[str, tuple[Tensor, ...]] = {}
    if isinstance(inner, Problem):
        tasks, dtype, device = inner.tasks, inner.dtype, inner.device
    else:
        first = first_leaf(w0)
        tasks, dtype, device = () if mapped is None else (mapped.size,), first.dtype, first.device
    for name, value in optimizer.settings().items():
        if is_elementwise(value, tasks):
            like = inner.initial(w0) if isinstance(inner, Problem) else w0
            elementwise[name] = resolve_elementwise(name, value, steps, like, mapped is not None)
        else:
            uniform[name] = resolve(name, value, steps, tasks, dtype, device)
    return uniform, elementwise


def _memory(memory: Any) -> Literal["auto"] | int | Schedule:
    if isinstance(memory, str) and memory == "auto":
        return "auto"
    if isinstance(memory, type):
        raise TypeError(f"memory is the class {memory.__name__}: pass an instance, such as pb.StoreAll()")
    if isinstance(memory, Schedule):
        return memory
    try:
        return parse_bytes(memory)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f'memory must be "auto", a number of bytes or a schedule, got {memory!r}: {error}'
        ) from None
