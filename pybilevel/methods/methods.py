"""The method classes: cheap frozen values that say how to differentiate an unroll; the engine does it.

`exact` says whether a method in its default form gives the derivative of the T steps, as tests/laws/test_methods.py
holds every one of `Method` to, or that of the solution which they approach.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pybilevel.checks import check_range, is_number

Solver = Literal["cg", "normal_cg", "neumann", "fixed_point"]
SOLVERS: tuple[str, ...] = ("cg", "normal_cg", "neumann", "fixed_point")


@dataclass(frozen=True)
class Reverse:
    """Reverse mode through the inner steps (Franceschi et al. 2017, algorithm 1): exact, the default.

    Args:
        truncate: differentiate the last `truncate` steps only; what lies before gets zeros (Shaban et al. 2019).
            None: all steps.
        first_order: take every inner gradient as a constant, so that no second derivative of the inner loss is needed:
            w0 gets dE/dw_T through the optimizer's own steps (with plain gradient descent, dE/dw_T itself: FOMAML, Finn
            et al. 2017), settings such as lr get theirs, and what enters through the inner loss alone gets zeros.
            Time: one gradient a reversed step instead of about three.
    """

    truncate: int | None = None
    first_order: bool = False
    name: ClassVar[str] = "reverse"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.truncate is None:
            return
        if not isinstance(self.truncate, int) or isinstance(self.truncate, bool):
            raise TypeError(f"truncate must be an int or None, got {self.truncate!r}")
        if self.truncate < 1:
            raise ValueError(
                f"truncate must be >= 1, got {self.truncate}: use None to differentiate every step"
            )


@dataclass(frozen=True)
class Forward:
    """Forward mode (Franceschi et al. 2017, algorithm 2): exact; memory does not grow with T, cost grows with P.

        Z_{t+1} = dPhi_t/dw Z_t + dPhi_t/dtheta,   dE/dtheta = Z_T^T dE/dw_T

    P tangents travel with the iterate and the optimizer's buffers, one for every number of every tensor that requires
    a gradient (w0 too). Where the tasks of a fused problem have tensors of their own, one for every number of a task.

    With `state=` tangents go on where the last call ended, so the outer optimizer may step between calls: online
    (real-time) hypergradients. `state.detach()` drops them. docs/methods.md has the cost and an example.

    Time: a step costs one gradient and P products with its Hessian. Memory: P times that of the iterate. `memory` in
    bytes bounds it, "auto" is a quarter of what is free; a schedule has no effect, since nothing is stored. Runs in
    the generic engine; no second backward is taken where an operation has none.
    """

    name: ClassVar[str] = "forward"
    exact: ClassVar[bool] = True


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the final iterate: the derivative of the solution that training approaches.

        dL/dw (w*, theta) = 0,   (H + damping) q = dE/dw*,   dE/dtheta = -(d2L/dtheta dw) q

    Right as far as w_T solves the inner problem; neither T nor the optimizer matters. hparams, captured tensors and
    the tensors of a problem get gradients, w0 and the settings zeros. `steps=0` makes a w0 that was found by other
    means a differentiable solution: `pb.unroll(inner, w, hparams, steps=0, optimizer=..., method=pb.Implicit())`.

    Args:
        solver: "cg": conjugate gradients, where the Hessian H of the inner loss is positive definite. "normal_cg": on
            H^2, also where H is indefinite; twice the cost an iteration. "neumann": a Neumann series, with the step
            1 / |H| of a power iteration. "fixed_point": for w* = Phi(w*, theta) with the last step Phi of the
            optimizer, its buffers included: q <- J^T q + dE/dw*, which converges where training does, at its rate;
            weight decay is allowed, and settings get the derivative of the fixed point in them.
        max_iter: iterations of the solver at most, >= 1.
        tol: relative residual |dE/dw* - (H + damping) q| / |dE/dw*| at which it stops, >= 0.
        damping: added to the diagonal of the system, >= 0.

    The tasks of a fused problem are independent systems, solved together with one step length a task each.

    The backward fills `state.info` of `return_state=True`: "residual" [*B] (computed from the result), "iterations",
    "converged" (residual <= 2 tol), "stopped" ("converged", "max_iter", or "curvature" where cg met a direction in
    which H is not positive, or normal_cg one in which it is 0), "stationarity" [*B] (the norm of dL/dw at w_T; of
    Phi(w_T) - w_T), "solution" (q) and "solver". A system that is not solved is reported there and nowhere else. The
    next call with `state=` starts from that q (warm start).

    Time: T steps forward (in the fused kernels where they can), one product with H an iteration. Memory: one step's
    graph, which all products share, and a few vectors like w; `memory` has no effect.

    Raises:
        TypeError, ValueError: an argument is out of range; of `unroll`: batches, a random inner loss, and a
            weight decay of the optimizer except for "fixed_point".

    Source: Pedregosa 2016; Lorraine et al. 2020; Grazzi et al. 2020.
    """

    solver: Solver = "cg"
    max_iter: int = 100
    tol: float = 1e-6
    damping: float = 0.0
    name: ClassVar[str] = "implicit"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not isinstance(self.max_iter, int) or isinstance(self.max_iter, bool):
            raise TypeError(f"max_iter must be an int, got {self.max_iter!r}: write int(max_iter)")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be >= 1, got {self.max_iter}")
        for name, value in (("tol", self.tol), ("damping", self.damping)):
            if not is_number(value):
                raise TypeError(f"{name} must be a number, got {value!r}: write float({name})")
            check_range(name, value)


@dataclass(frozen=True)
class Spectral:
    """Least squares with constant settings: T steps as one function of the eigenvalues of the inner problem's matrix.

    w_T and all hypergradients are those of `Reverse()`, at the cost of one symmetric eigendecomposition whatever T is,
    without a trajectory (`memory=` has no effect). For `pb.LeastSquares` under `pb.SGD` with a number, () or [*B, 1]
    for every setting; anything else raises. Once differentiable. docs/spectral.md: how, cost, rounding.
    """

    name: ClassVar[str] = "spectral"
    exact: ClassVar[bool] = True


Method = Reverse | Forward | Implicit | Spectral
