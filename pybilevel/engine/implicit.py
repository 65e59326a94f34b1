"""Implicit differentiation: the derivative of the solution that the inner training approaches, at w_T alone.

    dL/dw (w*, theta) = 0:       (H + damping) q = w_bar,           theta_bar = -(d2L / dtheta dw) q
    w* = Phi(w*, theta):         (1 + damping - J^T) q = w_bar,     theta_bar = (dPhi / dtheta)^T q       fixed_point

The forward half keeps nothing; the backward solves one linear system by products, all with one graph of one step.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.flops import FlopCount
from pybilevel.engine.generic import autocast_now, once, refuse_inference_mode
from pybilevel.engine.iterate import Iterate, Moment, Tensors
from pybilevel.engine.one_way import forward_half, runs_fused
from pybilevel.engine.solvers import Product, System, solve
from pybilevel.engine.state import State
from pybilevel.engine.workspace import SCALARS, metered
from pybilevel.methods import Implicit
from pybilevel.ops.freed import check_alive
from pybilevel.ops.tracing import untraced


def check(call: Call) -> None:
    """Raise ValueError for a call whose w_T is no solution of one problem."""
    assert isinstance(call.method, Implicit)
    if call.batches is not None:
        raise ValueError(
            "batches is given, but method=pb.Implicit() differentiates the solution of one problem: train with "
            "batches under torch.no_grad(), then call unroll(full_loss, w, hparams, steps=0, method=pb.Implicit())"
        )
    if call.method.solver == "fixed_point":
        for name, value in call.settings.items():
            if value.ndim and value.shape[-1] == 0:
                raise ValueError(
                    f"{name} has no value for any of 0 steps, and solver='fixed_point' differentiates a step: give "
                    f"{name} as a number or a tensor ()"
                )
    elif {"weight_decay"} & {*call.settings, *call.elementwise}:
        raise ValueError(
            f"optimizer has a weight_decay, so training does not end where the gradient of inner is 0, which "
            f"solver={call.method.solver!r} relies on: put the penalty into inner (l2), or use solver='fixed_point'"
        )


@untraced
def run(call: Call) -> tuple[Any, State]:
    """w_T of a checked call, as an autograd node that solves a linear system, and the final state.

    Raises:
        ValueError: the inner loss draws random numbers.
        DivergenceError: on CPU, if an iterate is not finite.
    """
    refuse_inference_mode("pb.Implicit")
    if not torch.is_grad_enabled():
        return forward_half(call)
    dynamics = _dynamics(call)
    w, state = forward_half(call)
    adjoint = Adjoint(call, dynamics, state)
    inputs = [*dynamics.start.flat(), *dynamics.theta, *dynamics.settings]
    if not any(x.requires_grad for x in inputs):
        return w, state
    found = _Solution.apply(adjoint, pytree.tree_leaves(w), *inputs)  # type: ignore[no-untyped-call]
    w = pytree.tree_unflatten(list(found), dynamics.spec)
    return w, replace(state, w=w, info=adjoint.info)


def describe(call: Call, reasons: tuple[str, ...]) -> Explanation:
    """How implicit differentiation would run a call; operations and bytes if the solver needs all its iterations."""
    assert isinstance(call.method, Implicit)
    method, dynamics = call.method, _dynamics(call)
    step, product = _flops(dynamics)
    products = method.max_iter * (2 if method.solver == "normal_cg" else 1) + 2
    regime = "the fused kernels" if runs_fused(call) else "torch operations, one step at a time"
    return Explanation(
        backend="generic",
        coordinates=None,
        regime=f"forward half: {regime}; backward: at most {method.max_iter} iterations of {method.solver} at w_T",
        reasons=reasons,
        schedule="nothing is stored or recomputed: memory= has no effect",
        steps=call.steps,
        slots=0,
        recomputation=1.0,
        flops=(call.steps + 2) * step + products * product,
        bytes_moved=None,
        peak_memory=_peak_bytes(call, dynamics),
    )


def _dynamics(call: Call) -> Dynamics:
    """Those of a call. ValueError where the inner loss draws random numbers."""
    dynamics = Dynamics(call)
    if len(dynamics.streams):
        raise ValueError(
            "inner draws random numbers (dropout?), so that w_T is the solution of no problem that "
            "method=pb.Implicit() could differentiate: call .eval() on the module, or draw outside and pass the "
            "numbers through hparams"
        )
    return dynamics


def _peak_bytes(call: Call, dynamics: Dynamics) -> int:
    """The most bytes at once, as measured on one step forward and on two iterations of the solver at w0.

    A damping that outweighs the Hessian keeps a solver from stopping at once where w0 is far from a solution.
    """
    assert isinstance(call.method, Implicit)
    start = dynamics.start.detach()
    shortened = call._replace(method=replace(call.method, max_iter=2, tol=0.0, damping=1e6))
    adjoint = Adjoint(shortened, dynamics, State(start.w, start.buffers, call.start + 1, call.optimizer.name))
    bars = [torch.ones_like(x) for x in start.w]
    asked = [x.requires_grad for x in (*dynamics.start.flat(), *dynamics.theta, *dynamics.settings)]
    peak = metered(lambda: adjoint.pull(bars, asked)).peak
    if call.steps and not runs_fused(call):
        with torch.no_grad():
            peak = max(peak, metered(lambda: dynamics.advance(0, start, *dynamics.constants())).peak)
    # beside it w_T and its cotangent, the last buffers and the first
    return peak + 2 * start.nbytes + SCALARS


def _flops(dynamics: Dynamics) -> tuple[int, int]:
    """Operations of one gradient, and of one product with its Hessian (as torch counts them)."""
    now = dynamics.start.detach()
    theta = dynamics.theta_at([x.detach() for x in dynamics.theta], 0)
    with torch.no_grad(), dynamics.streams.undisturbed():
        with FlopCount() as step:
            moment = Moment(0, now.carried)
            _, pull = dynamics.gradient_map.linearise(now.w, theta, [False] * len(theta), moment)
        with FlopCount() as product:
            pull([torch.zeros_like(x) for x in now.w])
    return step.total, product.total


class Adjoint:
    """The system at the final iterate of a call, and the cotangents that its solution gives.

    Attributes:
        dynamics: those of the call.
        info: what a backward reports; that of the state.
    """

    def __init__(self, call: Call, dynamics: Dynamics, state: State) -> None:
        assert isinstance(call.method, Implicit)
        self._method = call.method
        self._lead = len(call.tasks)
        self._t = max(state.step - call.start - 1, 0)
        self.dynamics = dynamics
        w = tuple(x.detach() for x in pytree.tree_leaves(state.w))
        buffers = tuple(tuple(b.detach() for b in mine) for mine in state.buffers)
        self._last = Iterate(w, buffers, dynamics.start.carried)
        self._autocast = autocast_now(call.device.type)
        before = {} if call.state is None else call.state.info
        self._start = _fitting(before, self._method.solver, self._unknowns())
        self.info: dict[str, Any] = {}
        if call.problem is None:
            self._look()

    def pull(self, bars: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The cotangents of the inputs, where wanted, from those of w_T; those of w0 are zeros."""
        dynamics, states = self.dynamics, len(self.dynamics.start.flat())
        theta, settings = dynamics.constants()
        split = states + len(theta)
        with torch.no_grad(), self._autocast():
            dynamics.check_replay(theta)
            if self._method.solver == "fixed_point":
                found = self._pull_step(bars, theta, settings, wanted[states:split], wanted[split:])
            else:
                found = self._pull_loss(bars, theta, wanted[states:split])
        inputs = [*dynamics.start.flat(), *theta, *settings]
        rest = iter(found)
        result: list[Tensor | None] = []
        for i, (x, need) in enumerate(zip(inputs, wanted, strict=True)):
            given = next(rest, None) if need and i >= states else None
            result.append(torch.zeros_like(x) if need and given is None else given)
        return result

    def _look(self) -> None:
        """Raise where the loss at w_T takes tensors with gradients that the first pass did not see."""
        dynamics, last = self.dynamics, self._last
        theta = [x.detach() for x in dynamics.theta]
        with torch.no_grad(), self._autocast():
            dynamics.gradient_map.gradient(last.w, theta, dynamics.inspect, Moment(0, last.carried))

    def _unknowns(self) -> Tensors:
        return self._last.flat() if self._method.solver == "fixed_point" else list(self._last.w)

    def _pull_loss(self, bars: Sequence[Tensor], theta: Tensors, wanted: Sequence[bool]) -> Tensors:
        """By the Hessian of the inner loss: the cotangents of the wanted theta."""
        q = self._solve_loss(bars, theta)
        if not any(wanted):
            return []
        moment = Moment(0, self._last.carried)
        _, pull = self.dynamics.gradient_map.linearise(self._last.w, theta, wanted, moment)
        return pull([-x for x in q])[len(q) :]

    def _solve_loss(self, bars: Sequence[Tensor], theta: Tensors) -> Tensors:
        """(H + damping) q = bars. The graph of the products does not outlive it."""
        last, nothing = self._last, [False] * len(theta)
        g, pull = self.dynamics.gradient_map.linearise(
            last.w, theta, nothing, Moment(0, last.carried), retain=True
        )

        def product(q: Tensors) -> Tensors:
            return [a + self._method.damping * x for a, x in zip(pull(q), q, strict=True)]

        return self._solve(product, list(bars), self._lead, g)

    def _pull_step(
        self,
        bars: Sequence[Tensor],
        theta: Tensors,
        settings: Tensors,
        wanted_theta: Sequence[bool],
        wanted_settings: Sequence[bool],
    ) -> Tensors:
        """By the Jacobian of the last step: the cotangents of the wanted theta and settings."""
        dynamics, t = self.dynamics, self._t
        bar = Iterate.like(self._last, self._solve_step(bars, theta, settings))
        _, found, parts = dynamics.pullback(
            t, self._last, bar, theta, settings, wanted_theta, wanted_settings
        )
        rest = iter(parts)
        for i, (whole, need) in enumerate(zip(settings, wanted_settings, strict=True)):
            if need:
                total = torch.zeros_like(whole)
                dynamics.place(i, t, total).add_(next(rest))
                found.append(total)
        return found

    def _solve_step(self, bars: Sequence[Tensor], theta: Tensors, settings: Tensors) -> Tensors:
        """(1 + damping - J^T) q = bars, divided by 1 + damping; zeros stand for the cotangents of the buffers."""
        last, nothing = self._last, ([False] * len(theta), [False] * len(settings))
        after, pull = self.dynamics.linearise(self._t, last, theta, settings, *nothing, retain=True)
        scale = 1 / (1 + self._method.damping)

        def product(q: Tensors) -> Tensors:
            moved = pull(Iterate.like(last, q), ())[0].flat()
            return [x - scale * a for a, x in zip(moved, q, strict=True)]

        b = [scale * x for x in bars]
        b += [torch.zeros_like(x) for x in last.flat()[len(b) :]]
        change = [x - y for x, y in zip(after.w, last.w, strict=True)]
        # the step is no symmetric map, and nothing but the stop depends on inner products: one for all tasks
        return self._solve(product, b, 0, change)

    def _solve(self, product: Product, b: Tensors, lead: int, left: Tensors) -> Tensors:
        """Solves and reports; `left` is what a solution of the inner problem makes zero."""
        system = System(product, b, lead, self._method.max_iter, self._method.tol)
        solution = solve(self._method.solver, system, self._start)
        self.info.update(
            solver=self._method.solver,
            residual=solution.residual,
            iterations=solution.iterations,
            converged=solution.stopped == "converged",
            stopped=solution.stopped,
            stationarity=system.dot(left, left).sqrt(),
            solution=tuple(solution.q),
        )
        return solution.q


def _fitting(info: dict[str, Any], solver: str, unknowns: Tensors) -> Tensors | None:
    """The solution of an earlier backward, if one was made by the same solver on a problem of the same shapes."""
    q = info.get("solution")
    if info.get("solver") != solver or q is None or len(q) != len(unknowns):
        return None
    fits = all(
        a.shape == b.shape and a.dtype == b.dtype and bool(a.isfinite().all())
        for a, b in zip(q, unknowns, strict=True)
    )
    return [a.to(b.device) for a, b in zip(q, unknowns, strict=True)] if fits else None


class _Solution(torch.autograd.Function):
    """The autograd node: w_T, whose backward is a linear system at it."""

    @staticmethod
    def forward(ctx: Any, adjoint: Adjoint, w: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint = adjoint
        ctx.states = len(adjoint.dynamics.start.flat())
        # saved only so that autograd notices in-place changes; w0 is not needed any more, so it may change
        ctx.save_for_backward(*w, *inputs[ctx.states :])
        ctx.count = len(w)
        return tuple(w)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        inputs = ctx.saved_tensors[ctx.count :]
        check_alive(("a tensor of inner, hparams or optimizer", x) for x in inputs)
        found = ctx.adjoint.pull(bars, ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():
            found = once(found, [x for x in (*inputs, *bars) if x.requires_grad])
        return None, None, *found
