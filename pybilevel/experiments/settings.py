"""Settings of a few-shot run: what the command line says, what a checkpoint remembers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import torch

from pybilevel.experiments.meta_learner import Normalisation, Precision

EMBEDDED_MINUTES = 1.25
DATA_MINUTES = 18.0
# What a resumed run may change without becoming another run.
ADJUSTABLE = ("minutes", "episodes", "patience", "threads", "device", "test_episodes")
POSITIVE = (
    "ways shots queries steps inner_lr filters meta_batch train_ways train_queries lr clip minutes episodes "
    "validate_every validation_episodes test_episodes threads"
)


@dataclass(frozen=True)
class FewShotSettings:
    """Everything that decides a few-shot run. Defaults are explained in docs/experiments.md.

    data: None for the embedded characters, "omniglot" to download, else a folder. minutes: time for training with
    its validations (None: 1.25 on the embedded characters, 18 on data; no limit where `episodes` is given).
    train_ways and train_queries: classes (None: as many as tested) and queries a class of training episodes. clip: the
    largest norm of the outer gradient. averaging: decay of the running average of the weights that is validated and
    tested. patience: validations without improvement before stopping, 0 for never.
    """

    data: str | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 15
    steps: int = 5
    inner_lr: float = 0.03
    filters: int = 64
    batch_norm: Normalisation = "episode"
    precision: Precision = "float32"
    meta_batch: int = 8
    train_ways: int | None = None
    train_queries: int = 5
    lr: float = 1e-3
    lr_decay: float = 1e-5
    clip: float = 1.0
    averaging: float = 0.998
    minutes: float | None = None
    episodes: int | None = None
    validate_every: int = 250
    validation_episodes: int = 100
    patience: int = 30
    test_episodes: int = 600
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in POSITIVE.split():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value} must be positive.")
        if self.ways < 2:
            raise ValueError(f"ways = {self.ways} must be at least 2: one class needs no learning.")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging = {self.averaging} must be in [0, 1).")
        self._check_choices()
        for name in ("lr_decay", "patience", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative.")

    def _check_choices(self) -> None:
        for name, choices in (("batch_norm", get_args(Normalisation)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(choices)}.")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"device = {self.device!r} is none that torch knows; use cpu, or cuda."
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device = {self.device!r}, but torch finds no CUDA device here; use cpu.")

    @property
    def budget_seconds(self) -> float:
        """Seconds for training with its validations; infinite where only `episodes` is given."""
        if self.minutes is not None:
            return 60 * self.minutes
        if self.episodes is not None:
            return float("inf")
        return 60 * (EMBEDDED_MINUTES if self.data is None else DATA_MINUTES)

    @property
    def budget_iterations(self) -> float:
        """Iterations (meta-batches) of training; infinite where `episodes` is not given."""
        return float("inf") if self.episodes is None else -(-self.episodes // self.meta_batch)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FewShotSettings:
        """The inverse of `to_json`; unknown names raise TypeError."""
        return cls(**values)

    def resumed(self, given: dict[str, Any]) -> FewShotSettings:
        """These settings with the ones given on the command line of a resumed run.

        Errors: ValueError naming every setting that would make it another run.
        """
        changed = {name: value for name, value in given.items() if value != getattr(self, name)}
        fixed = [name for name in changed if name not in ADJUSTABLE]
        if fixed:
            text = "; ".join(
                f"{name} = {changed[name]}, but the run has {getattr(self, name)}" for name in fixed
            )
            raise ValueError(
                f"a resumed run cannot change its settings: {text}. Start a new run with another --out."
            )
        return dataclasses.replace(self, **changed)
