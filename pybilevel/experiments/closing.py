"""The last words of a few-shot run: what came out, how it compares, what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pybilevel.experiments.display import columns
from pybilevel.experiments.evaluation import Accuracy
from pybilevel.experiments.meta_learner import Normalisation
from pybilevel.experiments.ratio import Ratio
from pybilevel.experiments.settings import FewShotSettings

RESULT = "result.json"
CURVES = "curves.png"
MEANING: dict[Normalisation, str] = {
    "episode": "transductive: batch norm by episode, as in the paper's code",
    "batch": "transductive: batch norm by meta-batch",
    "running": "not transductive: batch norm by running averages",
}
# Franceschi et al. 2018, table 4: hyper-representation on Omniglot, by (ways, shots), in percent.
PUBLISHED = {(5, 1): 98.6, (5, 5): 99.5, (20, 1): 95.5, (20, 5): 98.4}


@dataclass(frozen=True)
class FewShotResult:
    """What a run found: `tests` holds the meta-test accuracy by normalisation, the chosen one first."""

    tests: dict[Normalisation, Accuracy]
    ratio: Ratio
    reason: str
    folder: Path


def closing_lines(settings: FewShotSettings, result: FewShotResult, seconds: float) -> list[str]:
    """The outcome and what to try next, as lines of text."""
    lines = [""]
    for name, accuracy in result.tests.items():
        lines.append(
            f"Meta-test accuracy {accuracy}  ({settings.ways}-way {settings.shots}-shot, {accuracy.episodes} episodes, "
            f"95 % interval; {MEANING[name]})"
        )
    published = PUBLISHED.get((settings.ways, settings.shots))
    if settings.data is not None and published is not None:
        lines.append(f"Published for this setting on Omniglot: {published} %.")
    lines.append(f"Fused objective against plain PyTorch, forward + backward: {result.ratio}")
    lines.append(
        f"Training took {seconds / 60:.1f} min. In {result.folder}: {RESULT}, {CURVES}, checkpoint.safetensors"
    )
    return [*lines, "", "Try next:", *(f"  {line}" for line in _next(settings, result.folder))]


def _next(settings: FewShotSettings, folder: Path) -> list[str]:
    """Commands to try, each with its reason, in two columns."""
    data = "" if settings.data is None else f" --data {settings.data}"
    tips = [(f"pybilevel fewshot{data} --ways 20", "more classes an episode")]
    if settings.shots == 1:
        tips.append((f"pybilevel fewshot{data} --shots 5", "more examples a class"))
    tips.append((f"pybilevel fewshot{data} --steps 16", "longer inner training: the unroll stays cheap"))
    if settings.budget_seconds < float("inf"):
        minutes = 2 * settings.budget_seconds / 60
        tips.append(
            (
                f"pybilevel fewshot --resume --out {folder} --minutes {minutes:g}",
                "train on, to twice the time",
            )
        )
    if settings.data is None:
        tips.append(("pybilevel fewshot --data omniglot", "the real data: downloads 14 MB; or --data DIR"))
    tips.append(("pybilevel hyperclean", "another job: find the wrong labels of a training set"))
    return columns(tips)
