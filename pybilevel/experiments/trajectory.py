"""The curves of a `pb.Recorder` as a picture: inner losses, gradient norms, cotangent norms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pybilevel as pb
from pybilevel.data.cache import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "losses": "inner loss L(w_t)",
    "gradient_norms": "gradient norm |dL/dw|",
    "cotangent_norms": "cotangent norm |dE/dw_t|",
}


def plot(
    recorders: pb.Recorder | Mapping[str, pb.Recorder], path: str | Path | None = None, title: str = ""
) -> Figure:
    """Draws one recorder, or several by label, against the inner step t; needs matplotlib (pybilevel[experiments]).

    Axes are logarithmic where every value is positive. Read the cotangents from right to left, as the backward goes: a
    falling curve is a vanishing hypergradient, which truncation does little harm to; a rising one explodes.

    Args:
        recorders: what unrolls were given as `callback`.
        path: a PNG to write, if given.
        title: above all panels.

    Returns:
        The figure, for more than a PNG.

    Raises:
        ValueError: no recorder has a step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = recorders if isinstance(recorders, Mapping) else {"": recorders}
    if not any(recorder.losses for recorder in named.values()):
        raise ValueError("no recorder has a step: pass it to pb.unroll as callback first")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _draw(axes, panel, named)
    if title:
        figure.suptitle(title)
    if path is not None:
        with atomic(Path(path)) as file:
            figure.savefig(file, format="png", dpi=120)
    return figure


def _draw(axes: Axes, panel: str, named: Mapping[str, pb.Recorder]) -> None:
    drawn: list[float] = []
    for label, recorder in named.items():
        curve: dict[int, float] = getattr(recorder, panel)
        axes.plot(list(curve), list(curve.values()), label=label or None)
        drawn += curve.values()
    if drawn and min(drawn) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="inner step t", ylabel=PANELS[panel])
    axes.grid(alpha=0.25)
    if any(named) and drawn:
        axes.legend(frameon=False)
