"""Embedded characters: strokes drawn by formula, for the demo, the tests and machines without data.

An alphabet fixes a style (how many strokes, how curved, where strokes like to start); a character is a few quadratic
B-splines through control points drawn in that style; a drawer turns, shears, scales and shifts the character, has a
pen of their own, and misses every control point a little. Everything is vectorised over all drawings, and a stroke is
splatted as a sum of Gaussians along the curve, which is separable: the image is one batched product [H, points] x
[points, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pybilevel.data.images import ClassImages

Floats = npt.NDArray[np.float32]

STROKES = 4
CONTROLS = 5
SAMPLES = 24
CHUNK = 1000


@dataclass(frozen=True)
class Wobble:
    """Standard deviations of what drawers do: per drawing, in units of the half width of the image."""

    turn: float = 0.16
    shear: float = 0.14
    scale: float = 0.12
    shift: float = 0.08
    points: float = 0.055
    noise: float = 0.06


def embedded_characters(
    *,
    alphabets: int = 30,
    characters: int = 20,
    drawings: int = 20,
    size: int = 28,
    seed: int = 0,
    wobble: Wobble = Wobble(),
) -> ClassImages:
    """Draw `alphabets * characters` classes of `drawings` images each, the same for the same seed.

    Shapes: images [alphabets * characters, drawings, size, size].
    Cost: about 0.15 ms a drawing on one core; memory 50 MB while drawing, and the images.
    """
    rng = np.random.default_rng(seed)
    controls, used = _characters(rng, alphabets, characters)
    classes = len(controls)
    points = _drawn(rng, controls, drawings, wobble)
    curves = points.reshape(classes * drawings, STROKES, CONTROLS, 2)
    ink = np.repeat(used, drawings, axis=0)
    pen = rng.uniform(0.038, 0.062, classes * drawings).astype(np.float32)
    images = np.empty((classes * drawings, size, size), np.uint8)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        grey = _render(curves[part], ink[part], pen[part], size)
        grey += rng.normal(0.0, wobble.noise, grey.shape).astype(np.float32) * (grey > 0.02)
        images[part] = np.rint(255 * np.clip(grey, 0.0, 1.0))
    names = tuple(f"alphabet{a:02d}/character{c:02d}" for a in range(alphabets) for c in range(characters))
    return ClassImages(images.reshape(classes, drawings, size, size), names, "embedded characters")


def _characters(rng: np.random.Generator, alphabets: int, characters: int) -> tuple[Floats, Floats]:
    """Ideal control points [classes, STROKES, CONTROLS, 2] in [-1, 1]^2, and which strokes exist [classes, STROKES]."""
    shape = (alphabets, characters, STROKES)
    curl = rng.uniform(0.15, 0.9, (alphabets, 1, 1, 1, 1))
    reach = rng.uniform(0.5, 1.0, (alphabets, 1, 1, 1, 1))
    anchors = rng.uniform(-0.7, 0.7, (alphabets, 6, 2))
    start = np.take_along_axis(anchors[:, None], rng.integers(0, 6, (*shape, 1)), axis=2)
    heading = (
        rng.uniform(0.0, 2 * np.pi, (*shape, 1))
        + np.cumsum(rng.normal(0.0, 1.6, (*shape, CONTROLS)), -1) * curl[..., 0]
    )
    stride = reach * rng.uniform(0.2, 0.6, (*shape, CONTROLS, 1))
    moves = stride * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    path = start[..., None, :] + np.cumsum(moves, axis=-2) - moves[..., :1, :]
    count = np.clip(
        rng.poisson(rng.uniform(0.8, 2.0, (alphabets, 1)), (alphabets, characters)) + 1, 1, STROKES
    )
    used = np.arange(STROKES) < count[..., None]
    path = _fitted(path.reshape(-1, STROKES, CONTROLS, 2), used.reshape(-1, STROKES))
    return path.astype(np.float32), used.reshape(-1, STROKES).astype(np.float32)


def _fitted(path: npt.NDArray[np.float64], used: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Centre every character and scale its larger side to 1.3 of the 2 available."""
    there = used[:, :, None, None]
    low = np.where(there, path, np.inf).min(axis=(1, 2), keepdims=True)
    high = np.where(there, path, -np.inf).max(axis=(1, 2), keepdims=True)
    side = np.maximum((high - low).max(axis=-1, keepdims=True), 1e-3)
    return np.asarray((path - (low + high) / 2) * (1.3 / side))


def _drawn(rng: np.random.Generator, controls: Floats, drawings: int, wobble: Wobble) -> Floats:
    """Control points as each drawer puts them: [classes, drawings, STROKES, CONTROLS, 2]."""
    shape = (len(controls), drawings)
    turn = rng.normal(0.0, wobble.turn, shape)
    shear = rng.normal(0.0, wobble.shear, shape)
    scale = np.exp(rng.normal(0.0, wobble.scale, (*shape, 2)))
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.stack([np.stack([cos, shear - sin], -1), np.stack([sin, cos], -1)], -2) * scale[..., None]
    shift = rng.normal(0.0, wobble.shift, (*shape, 1, 1, 2))
    missed = controls[:, None] + rng.normal(0.0, wobble.points, (*shape, STROKES, CONTROLS, 2))
    flat = missed.reshape(*shape, STROKES * CONTROLS, 2) @ affine.swapaxes(-1, -2)
    return np.asarray(flat.reshape(missed.shape) + shift, dtype=np.float32)


def _render(curves: Floats, used: Floats, pen: Floats, size: int) -> Floats:
    """Grey images [N, size, size]: curves [N, STROKES, CONTROLS, 2], used [N, STROKES], pen widths [N]."""
    points = np.einsum("pk,nskx->nspx", _spline_basis(), curves).reshape(len(curves), -1, 2)
    weight = np.repeat(used, SAMPLES, axis=1)
    centres = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    spread = (-0.5 / pen**2)[:, None, None]
    across = np.exp(spread * (points[:, :, :1] - centres) ** 2)
    along = np.exp(spread * (points[:, :, 1:] - centres) ** 2) * weight[:, :, None]
    return np.asarray(1 - np.exp(-1.1 * (along.swapaxes(1, 2) @ across)), dtype=np.float32)


def _spline_basis() -> Floats:
    """Weights [SAMPLES, CONTROLS] of a clamped uniform quadratic B-spline (de Boor) at equally spaced parameters."""
    degree = 2
    inner = np.arange(1, CONTROLS - degree)
    knots = np.concatenate([np.zeros(degree + 1), inner, np.full(degree + 1, CONTROLS - degree)])
    t = np.linspace(0, CONTROLS - degree - 1e-6, SAMPLES)[:, None]
    basis = ((knots[:-1] <= t) & (t < knots[1:])).astype(np.float64)
    for k in range(1, degree + 1):
        left = knots[k:-1] - knots[: -k - 1]
        right = knots[k + 1 :] - knots[1:-k]
        rise = np.divide(t - knots[: -k - 1], left, out=np.zeros((SAMPLES, len(left))), where=left > 0)
        fall = np.divide(knots[k + 1 :] - t, right, out=np.zeros((SAMPLES, len(right))), where=right > 0)
        basis = rise * basis[:, :-1] + fall * basis[:, 1:]
    return basis.astype(np.float32)
