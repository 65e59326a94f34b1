"""Accuracy over many episodes, with its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pybilevel.data.episodes import EpisodeIndices, EpisodeSampler, EpisodeShape, EpisodeTable
from pybilevel.experiments.meta_learner import MetaLearner, Normalisation, correct
from pybilevel.experiments.workers import Workers

# Validation and test episodes are the same in every run with the same sizes: their seeds are not the run's.
VALIDATION_SEED = 20_180
TEST_SEED = 20_181
BATCH = 8
CALIBRATION_IMAGES = 4000


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy over episodes with the half width of its 95 % confidence interval, and the mean query loss."""

    mean: float
    interval: float
    loss: float
    episodes: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} %"


def evaluate(
    learner: MetaLearner,
    table: EpisodeTable,
    shape: EpisodeShape,
    *,
    episodes: int,
    seed: int,
    batch_norm: Normalisation | None = None,
    workers: Workers | None = None,
) -> Accuracy:
    """Accuracy of a meta-learner over `episodes` episodes drawn from a table: mean and 1.96 standard errors.

    The learner's train/eval mode is kept. One host synchronisation in all; the
    meta-batches go to the workers, whose number does not change the result.
    """
    sampler = EpisodeSampler(table.classes, table.drawings, shape, seed)
    was_training = learner.training
    learner.eval()
    indices = [sampler.indices(min(BATCH, episodes - start)) for start in range(0, episodes, BATCH)]

    @torch.no_grad()
    def work(rows: EpisodeIndices) -> tuple[Tensor, Tensor]:
        batch = table.gather(rows)
        loss, logits = learner(batch, batch_norm)
        return loss, correct(logits, batch.query_y)

    losses, accuracies = zip(*(workers or Workers(1)).map(work, indices), strict=True)
    learner.train(was_training)
    return _summary(torch.cat(losses), torch.cat(accuracies))


def calibrate(
    learner: MetaLearner, table: EpisodeTable, *, seed: int, images: int = CALIBRATION_IMAGES
) -> None:
    """Give weights that were trained transductively running averages: the statistics of training images."""
    count = table.classes * table.drawings
    rows = np.random.default_rng(seed).permutation(count)[:images]
    step = min(len(rows), images // 10)
    learner.encoder.calibrate([table.rows(rows[k : k + step]) for k in range(0, len(rows) - step + 1, step)])


def _summary(losses: Tensor, accuracies: Tensor) -> Accuracy:
    count = len(accuracies)
    spread = float(accuracies.double().std()) if count > 1 else math.nan
    return Accuracy(
        mean=float(accuracies.double().mean()),
        interval=1.96 * spread / math.sqrt(count),
        loss=float(losses.double().mean()),
        episodes=count,
    )
