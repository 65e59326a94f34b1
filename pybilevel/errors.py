"""The errors that only pybilevel raises; everything else is a ValueError, TypeError or NotImplementedError."""

from collections.abc import Sequence


class DivergenceError(RuntimeError):
    """An inner iterate stopped being finite.

    Attributes:
        step: index t of the first iterate ``w_t`` that holds a NaN or an infinity (0: ``w_0`` itself).
    """

    def __init__(
        self, step: int, hint: str = "lower lr, regularise the inner loss, or look for NaN in its data"
    ) -> None:
        self.step = step
        super().__init__(f"the inner unroll diverged: w_{step} is not finite (step {step}); {hint}")


class BackendError(ValueError):
    """A backend was demanded that cannot run the call; the text lists every reason, one a line, and the remedy.

    Attributes:
        backend: the backend that was demanded.
        reasons: why it cannot, as a tuple of sentences.
    """

    def __init__(self, backend: str, reasons: Sequence[str], remedy: str = 'use backend="auto"') -> None:
        self.backend = backend
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(f'backend="{backend}" cannot run this call:\n{lines}\nRemedy: {remedy}.')


class VerificationError(RuntimeError):
    """Two ways to compute a hypergradient disagree by more than rounding explains.

    Attributes:
        difference: the relative difference of the two.
        limit: what rounding may explain.
    """

    def __init__(self, what: str, difference: float, limit: float, remedy: str) -> None:
        self.difference = difference
        self.limit = limit
        super().__init__(f"{what}: relative difference {difference:.3g}, more than {limit:.3g}. {remedy}")
