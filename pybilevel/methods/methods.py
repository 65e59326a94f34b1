"""The method classes: cheap frozen values that say how to differentiate an unroll; the engine does it.

`exact` says whether a method in its default form gives the derivative of the T steps, as tests/laws/test_methods.py
holds every one of `Method` to, or that of the solution which they approach.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    """Implicit differentiation at the final iterate (Pedregosa 2016; Lorraine et al. 2020).

    Args:
        solver: how the linear system is solved.
        max_iter: iterations of the solver at most.
        tol: relative residual at which it stops.
        damping: added to the diagonal of the system.
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
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be >= 1, got {self.max_iter}")


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
