"""T steps of gradient descent on a quadratic as one autograd node: functions of the eigenvalues of H.

    [w_T; v_T] = U f(Lambda) U^T [w_0; v_0; b]       H = U Lambda U^T,  f the six functions of `spectral_powers`

The reverse never differentiates the eigenvectors, whose derivative has 1 / (l_i - l_j) in it. By Daleckii and Krein,
with g the cotangent of an output and a one of the three inputs,

    H_bar = U (f[l_i, l_j] * (U^T g) (U^T a)^T) U^T        summed over outputs and inputs, * element by element
    a_bar = U f(Lambda) U^T g,     X_bar = S X (H_bar + H_bar^T),     l2_bar = tr(D H_bar)

and the settings are differentiated by autograd through the powers, one number an eigenvalue.

Source: Higham, Functions of Matrices, SIAM 2008, theorem 3.11 (Daleckii and Krein).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine.generic import once
from pybilevel.engine.spectral_basis import Parts, Spectrum, decompose, split, total
from pybilevel.engine.spectral_powers import Map, Rule, differences, power


@dataclass(frozen=True)
class Form:
    """What is constant of a call: T >= 1, and the form of the step and of the model."""

    steps: int
    nesterov: bool
    bias: bool


class QuadraticSteps(torch.autograd.Function):
    """(w_T, v_T or None) of `Form` and nine tensors; None in, None out.

    x [*B, n, D]; scale, of the rows, broadcastable to [*B, n, 1]; l2 [*B]; b = X^T S Y [*B, D, c]; w0 (None: zeros)
    and v0 (None: zeros) [*B, D, c]; lr, momentum (None: no velocity), decay [*B, 1]. Once differentiable.
    """

    @staticmethod
    def forward(ctx: Any, form: Form, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, scale, l2, b, w0, v0, *settings = inputs
        assert x is not None and scale is not None and l2 is not None and b is not None
        with _no_autocast(x):
            spectrum = decompose(x, scale, l2, form.bias)
            states = (w0,) if settings[1] is None else (w0, v0)
            parts = [None if a is None else split(spectrum, a) for a in states]
            parts.append(split(spectrum, b, spanned=True))
            f = power(_rule(form, settings).step(spectrum.values), form.steps)
            results = [_apply(spectrum, row, parts) for row in _at(f, spectrum, x.dtype)]
        ctx.form, ctx.partial = form, spectrum.partial
        ctx.set_materialize_grads(False)
        # x .. settings are saved, not kept, so that autograd notices when one is changed in place
        ctx.save_for_backward(*inputs, spectrum.values, spectrum.vectors)
        return results[0], results[1] if len(results) > 1 else None

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        *inputs, values, vectors = ctx.saved_tensors
        spectrum = Spectrum(values, vectors, ctx.partial)
        with torch.no_grad(), _no_autocast(vectors):
            found = _Reverse(ctx.form, spectrum, inputs, bars).cotangents(ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():
            anchors = [t for t in (*inputs, *bars) if t is not None and t.requires_grad]
            found = once(found, anchors)
        return None, *found


class _Reverse:
    """The reverse pass: parts of inputs and cotangents in the eigenbasis, and what comes of them."""

    def __init__(
        self, form: Form, spectrum: Spectrum, inputs: Sequence[Any], bars: Sequence[Tensor | None]
    ) -> None:
        self._form, self._spectrum = form, spectrum
        self._x, self._scale, self._l2, b, w0, v0, *self._settings = inputs
        states = (w0,) if self._settings[1] is None else (w0, v0)
        self._parts = [None if a is None else split(spectrum, a) for a in states]
        self._parts.append(split(spectrum, b, spanned=True))
        self._bars = [None if g is None else split(spectrum, g) for g in bars[: len(states)]]
        self._rule = _rule(form, self._settings)
        self._step = self._rule.step(spectrum.values)

    def cotangents(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Those of x, scale, l2, b, w0, v0, lr, momentum, decay, where wanted."""
        found: list[Tensor | None] = [None] * 9
        if not any(g is not None for g in self._bars):
            return found
        if any(wanted[:3]):
            found[:3] = self._data(wanted)
        if any(wanted[3:6]):
            f = _at(power(self._step, self._form.steps), self._spectrum, self._x.dtype)
            columns = [*zip(*f, strict=True)]
            for place, column in ((3, -1), (4, 0), (5, 1)):
                if wanted[place]:
                    found[place] = _apply(self._spectrum, columns[column], self._bars)
        if any(wanted[6:]):
            found[6:] = self._settings_bars(wanted[6:])
        return found

    def _data(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """x_bar, scale_bar and l2_bar, all from H_bar in the eigenbasis."""
        vectors, x = self._spectrum.vectors, self._x
        core, cross, rest = self._core()
        found: list[Tensor | None] = [None, None, None]
        if wanted[0] or wanted[1]:
            right = (core + core.mT) @ vectors.mT
            product = (x @ vectors) @ (right if cross is None else right + cross)
            if wanted[0]:
                found[0] = self._scale * product
            if wanted[1]:
                found[1] = 0.5 * (product * x).sum(-1, keepdim=True)
        if wanted[2]:
            trace = core.diagonal(dim1=-2, dim2=-1).sum(-1) + rest
            if self._form.bias:
                axis = vectors[..., -1:, :]
                trace = trace - (axis @ core @ axis.mT)[..., 0, 0]
            found[2] = trace
        return found

    def _core(self) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """H_bar by blocks: U^T H_bar U [*B, r, r]; of H_bar + H_bar^T from U to the rest, [*B, r, D]; a trace."""
        spectrum, r = self._spectrum, self._spectrum.vectors.shape[-1]
        width = spectrum.values.shape[-1]
        slope = self._rule.slope()
        all_pairs = differences(self._step, slope, self._form.steps, self._x.dtype)
        core: Any = None
        cross: Any = None
        rest: Any = 0.0
        for g, row in zip(self._bars, all_pairs, strict=True):
            for a, pairs in zip(self._parts, row, strict=True):
                if g is None or a is None:
                    continue
                pairs = pairs.expand(*pairs.shape[:-2], width, width)
                block = pairs[..., :r, :r] * (g.inside @ a.inside.mT)
                core = block if core is None else core + block
                if g.outside is None:
                    continue
                edge = pairs[..., :r, r:]
                sides = (edge * a.inside) @ g.outside.mT
                if a.outside is not None:
                    sides = sides + (edge * g.inside) @ a.outside.mT
                    rest = rest + pairs[..., r, r] * (g.outside * a.outside).sum((-2, -1))
                cross = sides if cross is None else cross + sides
        return core, cross, rest

    def _settings_bars(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """lr_bar, momentum_bar and decay_bar, by autograd through the powers."""
        width = self._spectrum.values.shape[-1]
        with torch.enable_grad():
            leaves = [
                None if s is None else s.detach().double().requires_grad_(need)
                for s, need in zip(self._settings, wanted, strict=True)
            ]
            f = power(_rule(self._form, leaves).step(self._spectrum.values), self._form.steps)
            value = sum(
                (g.dot(a, width).double() * entry).sum()
                for g, row in zip(self._bars, f, strict=True)
                for a, entry in zip(self._parts, row, strict=True)
                if g is not None and a is not None
            )
        asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        bars = iter(torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True))  # type: ignore[arg-type]
        return [
            next(bars).to(self._x.dtype) if leaf is not None and leaf.requires_grad else None
            for leaf in leaves
        ]


def _rule(form: Form, settings: Sequence[Tensor | None]) -> Rule:
    lr, momentum, decay = (None if s is None else s.double() for s in settings)
    assert lr is not None and decay is not None
    return Rule(lr, momentum, decay, form.nesterov)


def _at(f: Map, spectrum: Spectrum, dtype: torch.dtype) -> list[list[Tensor]]:
    """The functions as values at all eigenvalues, in a dtype."""
    return [[entry.to(dtype).expand(spectrum.values.shape) for entry in row] for row in f]


def _apply(spectrum: Spectrum, functions: Sequence[Tensor], parts: Sequence[Parts | None]) -> Tensor:
    """The sum of f(H) a over functions f and matrices a that are there."""
    return total(spectrum, [a.scaled(f) for f, a in zip(functions, parts, strict=True) if a is not None])


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
