"""The method classes: cheap frozen values that say how to differentiate an unroll; the engine does it."""

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
        first_order: drop the second derivatives of the inner loss (FOMAML).
    """

    truncate: int | None = None
    first_order: bool = False
    name: ClassVar[str] = "reverse"

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
    """Forward mode: tangents of hparams and optimizer tensors travel with the iterates; memory constant in T."""

    name: ClassVar[str] = "forward"


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


Method = Reverse | Forward | Implicit | Spectral
