"""T steps of gradient descent on a quadratic as one autograd node: functions of the eigenvalues of H.

    [w_T; v_T] = U f(Lambda) U^T [w_0; v_0; b]       H = U Lambda U^T,  f the six functions of `spectral_powers`

The reverse never differentiates the eigenvectors, whose derivative has 1 / (l_i - l_j) in it. By Daleckii and Krein,
with g the cotangent of an output and a one of the three inputs,

    H_bar = U (f[l_i, l_j] * (U^T g) (U^T a)^T) U^T        summed over outputs and inputs, * element by element
    a_bar = U f(Lambda) U^T g,     X_bar = S (X (H_bar + H_bar^T) + Y b_bar^T),     l2_bar = tr(D H_bar)

with b = X^T S Y; and the settings are differentiated by autograd through the powers, one number an eigenvalue.

The decomposition, the coordinates U^T a and U^T g, the powers, and X U are float64 whatever the dtype of the problem:
directions of small eigenvalues, which the others swamp in a float32 product, are multiplied by up to lr T. (All in
float32, the hypergradients of 256 steps had 20 times the error of stepping.) Within the eigenbasis nothing is swamped:
divided differences, H_bar and the products after it are in the dtype of the problem.

Source: Higham, Functions of Matrices, SIAM 2008, theorem 3.11 (Daleckii and Krein).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine.generic import once
from pybilevel.engine.spectral_basis import Parts, Spectrum, combined, decompose, joined, split
from pybilevel.engine.spectral_powers import Map, Pairs, Rule, edges, functions, power, weighted


@dataclass(frozen=True)
class Form:
    """What is constant of a call: T >= 1, and the form of the step and of the model."""

    steps: int
    nesterov: bool
    bias: bool


class QuadraticSteps(torch.autograd.Function):
    """(w_T, v_T or None) of `Form` and nine tensors; None in, None out.

    x [*B, n, d]; y [*B, n, c]; scale, of the rows, broadcastable to [*B, n, 1]; l2 [*B]; w0 (None: zeros) and v0
    (None: zeros) [*B, D, c]; lr, momentum (None: no velocity), decay [*B, 1]. Once differentiable.
    """

    @staticmethod
    def forward(ctx: Any, form: Form, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert inputs[0] is not None
        dtype = inputs[0].dtype
        with _no_autocast(inputs[0]):
            y, scale, l2, *states, lr, momentum, decay = _doubled(inputs[1:])
            x = _design(inputs[0], form.bias)
            spectrum = decompose(x, scale, l2, form.bias)
            rows = x @ spectrum.vectors if coordinates_kept(*x.shape[-2:]) else None
            b = _targets(spectrum, x, rows, scale * y)
            parts = [*_parts(spectrum, states[: 1 if momentum is None else 2]), b]
            f = functions(Rule(lr, momentum, decay, form.nesterov), spectrum.values, form.steps)
            results = [joined(spectrum, _applied(row, parts)).to(dtype) for row in f]
        ctx.form, ctx.partial, ctx.power = form, spectrum.partial, f
        ctx.set_materialize_grads(False)
        # the inputs themselves, so that autograd notices when one is changed in place before the backward
        rows = None if rows is None else rows.to(dtype)
        ctx.save_for_backward(*inputs, rows, b.inside, spectrum.values, spectrum.vectors)
        return results[0], results[1] if len(results) > 1 else None

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        *inputs, rows, b, values, vectors = ctx.saved_tensors
        spectrum = Spectrum(values, vectors, ctx.partial)
        with torch.no_grad(), _no_autocast(vectors):
            reverse = _Reverse(ctx.form, ctx.power, spectrum, inputs, rows, b, bars)
            found = reverse.cotangents(ctx.needs_input_grad[1:])
            found = [None if t is None else t.to(inputs[0].dtype) for t in found]
        if torch.is_grad_enabled():
            anchors = [t for t in (*inputs, *bars) if t is not None and t.requires_grad]
            found = once(found, anchors)
        return None, *found


class _Reverse:
    """The reverse pass: parts of inputs and cotangents in the eigenbasis, and what comes of them."""

    def __init__(
        self,
        form: Form,
        power: Map,
        spectrum: Spectrum,
        inputs: Sequence[Any],
        rows: Tensor | None,
        b: Tensor,
        bars: Sequence[Tensor | None],
    ) -> None:
        self._form, self._power, self._spectrum = form, power, spectrum
        self._x, self._y, self._scale = inputs[:3]
        self._rows = rows
        *states, lr, momentum, decay = _doubled(inputs[4:])
        count = 1 if momentum is None else 2
        self._parts = [*_parts(spectrum, states[:count]), Parts(b, None)]
        self._bars = _parts(spectrum, _doubled(bars[:count]))
        self._rule = Rule(lr, momentum, decay, form.nesterov)

    def cotangents(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Those of x, y, scale, l2, w0, v0, lr, momentum, decay, where wanted."""
        found: list[Tensor | None] = [None] * 9
        if not any(g is not None for g in self._bars):
            return found
        if any(wanted[:6]):
            *states, last = zip(*self._power, strict=True)
            b = _applied(last, self._bars)
            found[:4] = self._data(wanted, b.to(self._x.dtype))
            for place, column in zip((4, 5), states, strict=False):
                if wanted[place]:
                    found[place] = joined(self._spectrum, _applied(column, self._bars))
        if any(wanted[6:]):
            found[6:] = self._settings_bars(wanted[6:])
        return found

    def _data(self, wanted: Sequence[bool], b: Parts) -> list[Tensor | None]:
        """x_bar, y_bar, scale_bar and l2_bar, from H_bar and b_bar in the eigenbasis."""
        found: list[Tensor | None] = [None] * 4
        if any(wanted[:3]):
            rows = self._coordinates()
        if wanted[1] or wanted[2]:
            fit = rows @ b.inside
            found[1] = self._scale * fit if wanted[1] else None
        if not (wanted[0] or wanted[2] or wanted[3]):
            return found
        core, cross, rest = self._core(self._x.dtype)
        if wanted[0] or wanted[2]:
            turned = rows @ core
        if wanted[2]:
            found[2] = (0.5 * turned * rows).sum(-1, keepdim=True) + (self._y * fit).sum(-1, keepdim=True)
        if wanted[0]:
            found[0] = self._x_bar(turned, b, None if cross is None else rows @ cross).mul_(self._scale)
        if wanted[3]:
            found[3] = 0.5 * self._trace(core) + rest
        return found

    def _coordinates(self) -> Tensor:
        """X U in the dtype of X: [*B, n, r]."""
        if self._rows is not None:
            return self._rows
        return (_design(self._x, self._form.bias) @ self._spectrum.vectors).to(self._x.dtype)

    def _x_bar(self, turned: Tensor, b: Parts, outside: Tensor | None) -> Tensor:
        """X (H_bar + H_bar^T) + Y b_bar^T, without the column of ones: [*B, n, d]."""
        d = self._x.shape[-1]
        vectors = self._spectrum.vectors[..., :d, :].to(self._x.dtype)
        bar: Tensor = _add_product(turned, self._y, b.inside.mT) @ vectors.mT
        if outside is not None:
            bar = bar + outside[..., :d]
        return bar if b.outside is None else bar + self._y @ b.outside[..., :d, :].mT

    def _trace(self, core: Tensor) -> Tensor:
        """tr(D (H_bar + H_bar^T)) within the span: [*B]."""
        trace = core.diagonal(dim1=-2, dim2=-1).sum(-1)
        if not self._form.bias:
            return trace
        axis = self._spectrum.vectors[..., -1:, :].to(core.dtype)
        return trace - (axis @ core @ axis.mT)[..., 0, 0]

    def _core(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """H_bar + H_bar^T by blocks: within U [*B, r, r], from U to the rest [*B, r, D]; half the trace of the rest."""
        parts, bars = (
            [None if p is None else p.to(dtype) for p in side] for side in (self._parts, self._bars)
        )
        terms = {
            (i, j): (g, a)
            for i, g in enumerate(bars)
            for j, a in enumerate(parts)
            if g is not None and a is not None
        }
        products = {place: g.inside @ a.inside.mT for place, (g, a) in terms.items()}
        values, r = self._spectrum.values, self._spectrum.vectors.shape[-1]
        core = weighted(self._rule, values[..., :r], self._form.steps, products)
        if not self._spectrum.partial:
            return core, None, 0.0
        return core, *_beyond(terms, edges(self._rule, values, self._form.steps))

    def _settings_bars(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """lr_bar, momentum_bar and decay_bar, by autograd through the powers."""
        values = self._spectrum.values
        settings = (self._rule.lr, self._rule.momentum, self._rule.decay)
        lr, momentum, decay = leaves = [None if s is None else s.detach().requires_grad_() for s in settings]
        assert lr is not None and decay is not None
        with torch.enable_grad():
            step = Rule(lr, momentum, decay, self._form.nesterov).step(values)
            terms = [
                (g.dot(a, values.shape[-1]) * entry).sum()
                for g, row in zip(self._bars, power(step, self._form.steps), strict=True)
                for a, entry in zip(self._parts, row, strict=True)
                if g is not None and a is not None
            ]
            value = torch.stack(terms).sum()
        asked = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True))
        bars = [None if leaf is None else next(found) for leaf in leaves]
        return [bar if need else None for bar, need in zip(bars, wanted, strict=True)]


def coordinates_kept(n: int, width: int) -> bool:
    """Whether the forward half makes X U, by which U^T X^T S Y is one thin product, and keeps it for the reverse half.

    By the sizes alone: whether a gradient needs it must not change how the value is rounded.
    """
    return n <= 2 * width


def _targets(spectrum: Spectrum, x: Tensor, rows: Tensor | None, y: Tensor) -> Parts:
    """The parts of b = x^T y; rows: x U, if there."""
    if rows is None:
        return split(spectrum, x.mT @ y, spanned=True)
    return Parts(rows.mT @ y, None)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a b; torch has no one operation for any number of tasks."""
    return total.addmm_(a, b) if total.ndim == 2 else total.add_(a @ b)


def _beyond(
    terms: Mapping[tuple[int, int], tuple[Parts, Parts]], last: Pairs
) -> tuple[Tensor, Tensor | float]:
    """Of H_bar + H_bar^T what leads from U to the rest, [*B, r, D], and of H_bar the trace of the rest, [*B].

    last [*B, r + 1]: the divided differences with the last eigenvalue, which is that of the rest.
    """
    cross: Any = None
    trace: Any = 0.0
    for place, (g, a) in terms.items():
        assert g.outside is not None
        values = last[place].to(g.inside.dtype)
        edge, corner = values[..., :-1, None], values[..., -1]
        sides = (edge * a.inside) @ g.outside.mT
        if a.outside is not None:
            sides = sides + (edge * g.inside) @ a.outside.mT
            trace = trace + corner * (g.outside * a.outside).sum((-2, -1))
        cross = sides if cross is None else cross + sides
    return cross, trace


def _parts(spectrum: Spectrum, tensors: Sequence[Tensor | None]) -> list[Parts | None]:
    return [None if t is None else split(spectrum, t) for t in tensors]


def _applied(row: Sequence[Tensor], parts: Sequence[Parts | None]) -> Parts:
    """The sum of f(H) a over functions f, given by their values, and the matrices a that are there."""
    return combined([a.scaled(f) for f, a in zip(row, parts, strict=True) if a is not None])


def _design(x: Tensor, bias: bool) -> Tensor:
    """x in float64, with a column of ones for the bias."""
    if not bias:
        return x.double()
    design = x.new_empty(*x.shape[:-1], x.shape[-1] + 1, dtype=torch.float64)
    design[..., :-1] = x
    design[..., -1] = 1
    return design


def _doubled(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if t is None else t.double() for t in tensors]


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
