"""The eigenvectors of a linear least-squares problem, and matrices written in them.

    H = X^T S X + l2 D        X [n, D] with a column of ones for the bias, S the example weights, D = diag(1..1, 0)

Only the span of the rows of X and of the bias axis needs eigenvectors: on everything orthogonal to it H is l2 times
the identity. So where that span is smaller than D, H is decomposed in an orthonormal basis of the span (by QR), and the
rest counts as one more eigenvalue, l2, whose eigenspace is never written out. This holds with weights that are zero,
with dependent rows and with any bias and l2. (The Gram matrix X X^T would do the same only without the bias or without
l2, and would take square roots of the weights.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pybilevel import ops


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of H.

    Attributes:
        values: [*B, r]; with `partial` [*B, r + 1], the last one l2.
        vectors: U [*B, D, r], orthonormal columns.
        partial: whether r < D.
    """

    values: Tensor
    vectors: Tensor
    partial: bool


class Parts(NamedTuple):
    """A matrix [*B, D, c] by a spectrum: U^T of it, and what is orthogonal to U (None: nothing)."""

    inside: Tensor  # [*B, r, c]
    outside: Tensor | None  # [*B, D, c]

    def scaled(self, f: Tensor) -> "Parts":
        """f(H) times it; f holds the values at the eigenvalues, [*B, r] or [*B, r + 1]."""
        r = self.inside.shape[-2]
        outside = None if self.outside is None else f[..., r:, None] * self.outside
        return Parts(f[..., :r, None] * self.inside, outside)

    def to(self, dtype: torch.dtype) -> "Parts":
        """The same in another dtype."""
        return Parts(self.inside.to(dtype), None if self.outside is None else self.outside.to(dtype))

    def dot(self, other: "Parts", width: int) -> Tensor:
        """The inner products of the two, one for each of the `width` eigenvalues: [*B, width]."""
        inside = (self.inside * other.inside).sum(-1)
        rest = inside.new_zeros(*inside.shape[:-1], width - inside.shape[-1])
        if self.outside is not None and other.outside is not None:
            rest = (self.outside * other.outside).sum((-2, -1)).unsqueeze(-1)
        return torch.cat((inside, rest), -1)


def rank(n: int, width: int, bias: bool) -> int:
    """r: how many eigenvectors a problem of n examples and D = `width` features, bias included, needs."""
    return min(n + int(bias), width)


def decompose(x: Tensor, scale: Tensor, l2: Tensor, bias: bool) -> Spectrum:
    """The spectrum of x^T scale x + l2 D.

    x: [*B, n, D], the last column ones if `bias`; scale: broadcastable to [*B, n, 1]; l2: [*B].

    Cost: 2 n D r + 9 r^3 operations, and 4 D r^2 where r < D.
    """
    partial = rank(x.shape[-2], x.shape[-1], bias) < x.shape[-1]
    basis = _span(x, bias) if partial else None
    rows = x if basis is None else x @ basis
    h = _upper(rows, scale)
    h.diagonal(dim1=-2, dim2=-1).add_(l2.unsqueeze(-1))
    if bias and basis is not None:
        axis = basis[..., -1:, :]
        h.sub_(l2[..., None, None] * axis.mT * axis)
    elif bias:
        h[..., -1, -1].sub_(l2)
    # By columns, as LAPACK has its matrices, the copy that it works on is a plain one; it reads what is below the
    # diagonal, which of the transpose is what is above
    values, vectors = torch.linalg.eigh(h.mT)
    if basis is None:
        return Spectrum(values, vectors, False)
    return Spectrum(torch.cat((values, l2.unsqueeze(-1)), -1), basis @ vectors, True)


def _upper(rows: Tensor, scale: Tensor) -> Tensor:
    """rows^T scale rows, [*B, r, r], of which what is below the diagonal may have no meaning."""
    if ops.spectral_native(rows):
        upper: Tensor = ops.spectral_normal(rows, scale.squeeze(-1).expand(rows.shape[:-1]))
        return upper
    # one scale for all rows is cheaper outside
    return rows.mT @ (scale * rows) if scale.shape[-2] > 1 else (rows.mT @ rows).mul_(scale)


def split(spectrum: Spectrum, matrix: Tensor, *, spanned: bool = False) -> Parts:
    """The parts of a matrix; `spanned` says that it has none outside."""
    inside = spectrum.vectors.mT @ matrix
    if spanned or not spectrum.partial:
        return Parts(inside, None)
    return Parts(inside, matrix - spectrum.vectors @ inside)


def combined(parts: list[Parts]) -> Parts:
    """The sum of some parts."""
    outside = [p.outside for p in parts if p.outside is not None]
    return Parts(_sum([p.inside for p in parts]), _sum(outside) if outside else None)


def joined(spectrum: Spectrum, parts: Parts) -> Tensor:
    """The matrix [*B, D, c] that has these parts."""
    found = spectrum.vectors @ parts.inside
    return found if parts.outside is None else found + parts.outside


def _span(x: Tensor, bias: bool) -> Tensor:
    """An orthonormal basis [*B, D, r] of the rows of x, and of the last axis if `bias`."""
    axes = x.mT
    if bias:
        last = x.new_zeros(*x.shape[:-2], x.shape[-1], 1)
        last[..., -1, 0] = 1
        axes = torch.cat((axes, last), -1)
    basis: Tensor = torch.linalg.qr(axes)[0]
    return basis


def _sum(tensors: list[Tensor]) -> Tensor:
    first, *others = tensors
    for other in others:
        first = first + other
    return first
