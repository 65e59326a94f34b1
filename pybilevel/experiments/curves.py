"""Learning curves of a few-shot run as a picture."""

from __future__ import annotations

from pathlib import Path

from pybilevel.data.cache import atomic
from pybilevel.experiments.training import Progress

TRAIN = "#7a8ca3"
VALIDATION = "#c2410c"


def plot_curves(path: Path, progress: Progress, title: str, test: float | None) -> None:
    """Draw accuracy and loss against iterations, training and validation, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        scale = 100 if key == "accuracy" else 1
        axes.plot(
            [point["iteration"] for point in progress.curve],
            [scale * point[key] for point in progress.curve],
            color=TRAIN, alpha=0.6, linewidth=0.8, label="training",
        )  # fmt: skip
        axes.plot(
            [point["iteration"] for point in progress.validations],
            [scale * point[key] for point in progress.validations],
            color=VALIDATION, marker=".", label="validation",
        )  # fmt: skip
        if key == "accuracy" and test is not None:
            axes.axhline(100 * test, color="black", linestyle=":", label=f"test {100 * test:.1f} %")
        if key == "loss":
            axes.set_yscale("log")
        axes.set(xlabel="iteration (meta-batch)", ylabel="accuracy, %" if key == "accuracy" else "query loss")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)
