"""A few small episodes, and meta-learners that train on them in milliseconds: what the few-shot tests share."""

from __future__ import annotations

from typing import Any

import torch

from pybilevel.data.episodes import EpisodeTable
from pybilevel.data.procedural import embedded_characters
from pybilevel.data.splits import split
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.training import Trainer

DATA = split(embedded_characters(alphabets=4, characters=10, drawings=8), sizes=(24, 8, 8))
TINY: dict[str, Any] = {
    "ways": 3, "queries": 3, "filters": 4, "meta_batch": 2, "validate_every": 4, "validation_episodes": 4,
    "test_episodes": 6, "threads": 1,
}  # fmt: skip


def tables() -> tuple[EpisodeTable, EpisodeTable]:
    return EpisodeTable(DATA.train.images), EpisodeTable(DATA.validation.images)


def trainer(**changes: Any) -> Trainer:
    return Trainer(FewShotSettings(**{**TINY, "episodes": 26, **changes}), *tables(), DATA.train.source)


def run(trainer: Trainer, iterations: int | None = None) -> str:
    return trainer.run(lambda: trainer.progress.iteration == iterations)


def same(a: Trainer, b: Trainer) -> None:
    """Bitwise the same tensors, and the same history but for the clock."""
    first, second = a.checkpoint(), b.checkpoint()
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert first.state["sampler"] == second.state["sampler"]
    assert without_clock(first.state["progress"]) == without_clock(second.state["progress"])


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(item) for key, item in value.items() if key != "seconds"}
    return [without_clock(item) for item in value] if isinstance(value, list) else value
