"""Hyper-representation: an encoder and an inner step size, learned through the training of linear heads."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

import pybilevel as pb
from pybilevel.data.episodes import Episodes
from pybilevel.experiments.encoder import MOMENTUM, Encoder

Normalisation = Literal["episode", "batch", "running"]
Precision = Literal["float32", "bfloat16"]


class MetaLearner(nn.Module):
    """The outer variables of few-shot learning, and the objective of a meta-batch.

    For every episode j: w^j starts at zero and takes `steps` steps of gradient descent, of the learned size
    exp(log_step), on the mean cross entropy of a linear head over the support features; its mean cross entropy over the
    queries is the outer loss.

    `batch_norm` names the statistics by which the encoder normalises:
    "episode": the support and the queries of each episode by their own (transductive; the paper's code);
    "batch": all support images of the meta-batch, and all its queries, by their own (transductive);
    "running": in training all images of the meta-batch; afterwards running averages (not transductive).
    """

    def __init__(
        self,
        *,
        steps: int,
        filters: int = 64,
        inner_lr: float = 0.03,
        batch_norm: Normalisation = "episode",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if not inner_lr > 0:
            raise ValueError(f"inner_lr = {inner_lr} must be positive.")
        self.encoder = Encoder(filters)
        self.log_step = nn.Parameter(torch.tensor(math.log(inner_lr)))
        self.steps = steps
        self.batch_norm = batch_norm
        self.precision = precision

    @property
    def inner_lr(self) -> Tensor:
        """The learned inner step size, a positive scalar."""
        return self.log_step.exp()

    def features(self, episodes: Episodes, batch_norm: Normalisation | None = None) -> tuple[Tensor, Tensor]:
        """Features of the support [B, n, d] and of the queries [B, m, d], encoded in one call."""
        batch_norm = batch_norm or self.batch_norm
        support, query = episodes.support, episodes.query
        (b, n), m = support.shape[:2], query.shape[1]
        images = torch.cat([support.flatten(0, 1), query.flatten(0, 1)])
        groups, track = self._groups(batch_norm, b, n, m)
        with self._autocast(images.device.type):
            x = self.encoder(images, groups, track)
        return x[: b * n].view(b, n, -1), x[b * n :].view(b, m, -1)

    def forward(self, episodes: Episodes, batch_norm: Normalisation | None = None) -> tuple[Tensor, Tensor]:
        """Query losses [B] and logits [B, m, ways] of a meta-batch."""
        support, query = self.features(episodes, batch_norm)
        loss, logits = pb.ml_objective(
            support,
            episodes.support_y,
            query,
            episodes.query_y,
            steps=self.steps,
            optimizer=pb.SGD(self.inner_lr),
            num_classes=episodes.ways,
        )
        return loss, logits

    def _groups(self, batch_norm: Normalisation, b: int, n: int, m: int) -> tuple[list[int] | None, float]:
        if batch_norm == "episode":
            return [n] * b + [m] * b, 0.0
        if batch_norm == "batch":
            return [b * n, b * m], 0.0
        return ([b * (n + m)], MOMENTUM) if self.training else (None, 0.0)

    def _autocast(self, device: str) -> AbstractContextManager[None]:
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right predictions in each episode: [B]."""
    return (logits.argmax(-1) == labels).float().mean(-1)
