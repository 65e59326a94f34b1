"""Charts of a result, where matplotlib is installed: bars of ratios, and a panel of every growth curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import SYMBOLS

Bar = tuple[str, float, bool]  # label, value, whether it is ours
COLUMNS = 3  # panels a row
AXIS_NAMES = {"steps": "steps T", "tasks": "tasks B"}


def write(bars: Sequence[Bar], curves: Sequence[dict[str, Any]], title: str, path: Path) -> list[Path]:
    """`path` with suffix .png for the bars and -growth.png for the curves, each if there are any; what was written."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return []
    written = []
    if bars:
        written.append(path.with_suffix(".png"))
        draw_bars(bars, title, written[-1])
    if curves:
        written.append(path.with_name(f"{path.stem}-growth.png"))
        draw_curves(curves, title, written[-1])
    return written


def draw_bars(bars: Sequence[Bar], title: str, path: Path) -> None:
    """Bars of the time of every contender over ours, one group a case, log scale."""
    from matplotlib.figure import Figure

    labels, values, mine = zip(*reversed(bars), strict=True)
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(labels)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(labels, values, color=["tab:green" if m else "tab:grey" for m in mine])
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axes.set(xscale="log", xlabel="time over the time of pybilevel (log scale)")
    axes.tick_params(labelsize=8)
    axes.margins(x=0.15, y=0.01)
    axes.set_title(title)
    figure.savefig(path, dpi=120)


def draw_curves(curves: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Time or peak memory against one size, a panel a curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(4.6 * min(len(curves), COLUMNS), 0.5 + 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, min(len(curves), COLUMNS), squeeze=False).ravel()
    for panel, case in zip(panels, curves, strict=False):
        _draw_curve(panel, case)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_curve(panel: Any, case: dict[str, Any]) -> None:
    axis = case.get("axis", "steps")
    quantity = "peak_bytes" if any("peak_bytes" in row for row in case["rows"]) else "seconds"
    for name in dict.fromkeys(row["name"] for row in case["rows"]):
        points = [
            (row[axis], row[quantity]) for row in case["rows"] if row["name"] == name and row.get(quantity)
        ]
        if points:
            style = "o-" if name.startswith("pybilevel") else "s--"
            panel.plot(*zip(*points, strict=True), style, label=name, markersize=4)
    panel.set(xscale="log", yscale="log", xlabel=AXIS_NAMES.get(axis, SYMBOLS[axis]))
    panel.set_ylabel("peak extra bytes" if quantity == "peak_bytes" else "seconds")
    panel.set_title(f"{case['name']}\n{case['workload']}, {case['summary']}", fontsize=9)
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=8)
    if panel.lines:
        panel.legend(fontsize=7)
