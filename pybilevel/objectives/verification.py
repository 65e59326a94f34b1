"""Is a hypergradient right? One directional derivative by independent means says so, whatever the number of inputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.along import Derivative, along
from pybilevel.engine.arguments import normalise
from pybilevel.engine.dynamics import Dynamics
from pybilevel.errors import VerificationError
from pybilevel.methods import Reverse
from pybilevel.problems import LinearProblem

ANALYTIC, DIFFERENCES = 1 / 2, 1 / 3
"""The exponents of the machine epsilon in the limit: of derivatives, and of central differences."""


@dataclass(frozen=True)
class Verification:
    """What a check of a hypergradient found. Each difference is relative, and below its limit.

    Attributes:
        difference: of the hypergradient along a random direction, and the derivative of the unroll along it.
        limit: of that difference.
        outer_difference: of the gradient of the outer objective along the change of w_T, and central differences.
        outer_limit: of that one.
        means: how the inner gradient was differentiated: "forward mode" or "central differences".
    """

    difference: float
    limit: float
    outer_difference: float
    outer_limit: float
    means: str


class Verifier:
    """Remembers the start of a hypergradient's computation, so that it can be repeated in another way.

    Attributes:
        outer: the outer objective, to be called in its place: the random state in which it was called is remembered.
    """

    def __init__(self, inner: Any, outer: Any, w0: Any, hparams: Any, options: Mapping[str, Any]) -> None:
        call = normalise(inner, w0, hparams, **options)
        method = call.method
        cut = isinstance(method, Reverse) and (method.truncate is not None or method.first_order)
        if cut or not method.exact:
            raise ValueError(
                f"verify=True compares with the derivative of all steps, which method={method!r} is not meant to be: "
                "leave verify False, or use an exact method such as pb.Reverse()"
            )
        if call.state is not None and any(x.requires_grad for x in pytree.tree_leaves(call.state.w)):
            raise ValueError(
                "verify=True starts where the call does, but state has a graph: pass state.detach()"
            )
        self._steps = call.steps
        # made before anything is drawn: the generators are where the unroll will find them
        self._dynamics = Dynamics(call)
        self._function = outer.promoted() if isinstance(outer, LinearProblem) else outer
        self._devices = [call.device] if call.device.type == "cuda" else []
        self._random: list[Tensor] = []
        self.outer: Any = outer if isinstance(outer, LinearProblem) else self._remembered

    def compare(self, wanted: Sequence[Tensor], grads: Sequence[Tensor]) -> Verification:
        """Compare `grads` in `wanted`, whose own graphs must still be there. VerificationError if they are wrong."""
        directions = _directions(grads)
        dynamics = self._dynamics
        inputs = [*dynamics.start.flat(), *dynamics.theta, *dynamics.settings]
        found = along(dynamics, self._steps, _pushed(inputs, wanted, directions))
        w = [x.detach().requires_grad_() for x in found.w]
        bars, direct = self._outer_gradients(w, wanted)
        outer_difference, outer_limit = self._check_outer(found, bars)
        given = _dot(grads, directions)
        expected = _dot(bars, found.dots) + _dot(direct, directions)
        eps = torch.finfo(w[0].dtype).eps
        limit = 4 * eps ** (DIFFERENCES if found.differences else ANALYTIC)
        # what rounding may change where the derivative is almost 0, as that of a rate is once training has converged
        noise = 100 * eps * _norm(bars) * (1 + _norm(w)) * _norm(directions)
        scale = max(
            _norm([g * d for g, d in zip(grads, directions, strict=True)]), abs(expected), noise / limit
        )
        difference = abs(given - expected) / scale if scale else 0.0
        means = "central differences of" if found.differences else "forward mode over"
        if not difference <= limit:
            raise VerificationError(
                f"the hypergradient is wrong: along a random direction it is {given:.9g}, but {expected:.9g} by "
                f"tangents of the iterates, from {means} the inner gradient",
                difference,
                limit,
                "Look in inner for a custom autograd.Function whose backward cannot be differentiated, or whose second "
                "derivative is wrong; if there is none, please report it",
            )
        return Verification(difference, limit, outer_difference, outer_limit, means.rpartition(" ")[0])

    def _remembered(self, w: Any) -> Tensor:
        self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]
        value: Tensor = self._function(w)
        return value

    def _outer_at(self, w: list[Tensor]) -> Tensor:
        """The outer objective at other parameters, with the random numbers that it had."""
        with torch.random.fork_rng(self._devices):
            if self._random:
                torch.set_rng_state(self._random[0])
                for device, state in zip(self._devices, self._random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            value: Tensor = self._function(pytree.tree_unflatten(w, self._dynamics.spec))
            return value.sum()

    def _outer_gradients(
        self, w: list[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Those of the outer objective in w_T, and in what it takes from `wanted` itself."""
        with torch.enable_grad():
            value = self._outer_at(w) + sum(0 * x.sum() for x in w)
        found = torch.autograd.grad(
            value, [*w, *wanted], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return list(found[: len(w)]), list(found[len(w) :])

    def _check_outer(self, found: Derivative, bars: list[Tensor]) -> tuple[float, float]:
        """The gradient of the outer objective against central differences, along the change of w_T."""
        eps = torch.finfo(bars[0].dtype).eps
        limit, moved = 4 * eps**DIFFERENCES, _norm(found.dots)
        if not moved:
            return 0.0, limit
        h = eps**DIFFERENCES * (1 + _norm(found.w)) / moved
        with torch.no_grad():
            above, below = (
                float(
                    self._outer_at([x + sign * h * dot for x, dot in zip(found.w, found.dots, strict=True)])
                )
                for sign in (1, -1)
            )
        measured, expected = (above - below) / (2 * h), _dot(bars, found.dots)
        count = sum(x.numel() for x in bars)
        noise = 8 * eps * abs(above) / h  # of two values that nearly cancel
        scale = max(abs(expected), _norm(bars) * moved / count**0.5, noise / limit)
        difference = abs(measured - expected) / scale if scale else 0.0
        if not difference <= limit:
            raise VerificationError(
                f"the gradient of outer is wrong: along the change of w_T it is {expected:.9g}, but {measured:.9g} by "
                "central differences",
                difference,
                limit,
                "Look for a custom autograd.Function in outer with a wrong backward",
            )
        return difference, limit


def _directions(grads: Sequence[Tensor]) -> list[Tensor]:
    """Random, the same in every call, and so long that every tensor has about the same part in the derivative."""
    generator = torch.Generator().manual_seed(0)
    norms = [_norm([g]) for g in grads]
    largest = max(norms) or 1.0
    return [
        torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g) / max(norm, largest / 1000)
        for g, norm in zip(grads, norms, strict=True)
    ]


def _pushed(
    inputs: Sequence[Tensor], wanted: Sequence[Tensor], directions: Sequence[Tensor]
) -> list[Tensor | None]:
    """The derivatives of `inputs`, as their graphs make them of `wanted`, along `directions`; None where constant.

    By two pullbacks: that of the pullback's own derivative in its cotangent.
    """
    moving = [x for x in inputs if x.requires_grad]
    if not moving:
        return [None] * len(inputs)
    with torch.enable_grad():
        bars = [torch.zeros_like(x, requires_grad=True) for x in moving]
        pulled = torch.autograd.grad(moving, wanted, bars, create_graph=True, allow_unused=True)
        parts = [(p * d).sum() for p, d in zip(pulled, directions, strict=True) if p is not None]
        total = sum(parts[1:], parts[0]) if parts else None
        found = [None] * len(bars) if total is None else torch.autograd.grad(total, bars, allow_unused=True)
    rest = iter(found)
    return [next(rest) if x.requires_grad else None for x in inputs]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _norm(tensors: Sequence[Tensor]) -> float:
    squares = [float(x.detach().double().square().sum()) for x in tensors]
    return math.sqrt(sum(squares))
