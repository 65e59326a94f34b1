"""Few-shot learning: the encoder, the meta-objective on its features, and evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fewshot_cases import tables
from torch import Tensor

from pybilevel.data.episodes import EpisodeSampler, EpisodeShape
from pybilevel.experiments.encoder import Encoder
from pybilevel.experiments.evaluation import calibrate, evaluate
from pybilevel.experiments.meta_learner import MetaLearner, correct
from pybilevel.experiments.plain import plain_objective
from pybilevel.experiments.ratio import fused_objective, measure_ratio

pytestmark = pytest.mark.usefixtures("one_thread")

# ------------------------------------------------------------------------------------------------ encoder


def test_the_encoder_has_four_positions_of_each_filter() -> None:
    encoder = Encoder(filters=6)
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert encoder(images, [5]).shape == (5, 24)
    assert Encoder().features == 256
    torch.testing.assert_close(encoder(images, [5]), encoder(images.float() / 255, [5]))


def test_each_group_is_normalised_by_itself() -> None:
    encoder, images = Encoder(filters=6), torch.rand(9, 28, 28)
    together = encoder(images, [4, 5])
    torch.testing.assert_close(together, torch.cat([encoder(images[:4], [4]), encoder(images[4:], [5])]))
    assert (together - encoder(images, [9])).abs().max() > 1e-3


def test_batch_norm_agrees_with_torch() -> None:
    encoder, images = Encoder(filters=6), torch.rand(7, 28, 28)
    x = images.unsqueeze(1)
    for convolution in encoder.convolutions:
        x = torch.nn.functional.conv2d(x, convolution.weight, stride=2, padding=1)
        x = torch.nn.BatchNorm2d(6)(x).relu()
    torch.testing.assert_close(encoder(images, [7]), x.flatten(1), rtol=1e-4, atol=1e-5)


def test_running_statistics_follow_and_calibrate() -> None:
    encoder, images = Encoder(filters=6), torch.rand(64, 28, 28)
    encoder.calibrate([images])
    torch.testing.assert_close(encoder(images), encoder(images, [64]), rtol=0.02, atol=0.02)
    torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- objective


def features(seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    support, query = (torch.rand(3, n, 8, generator=random) for n in (4, 6))
    return support, torch.arange(2).repeat(3, 2), query, torch.arange(2).repeat(3, 3)


def test_the_plain_objective_is_the_fused_one() -> None:
    step = torch.tensor(0.3)
    for plain, fused in zip(
        plain_objective(*features(), step, 4, 2), fused_objective(*features(), step, 4, 2), strict=True
    ):
        torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)


def test_the_ratio_is_measured_on_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = measure_ratio(*features(), lr=0.3, steps=4, ways=2)
    assert ratio.ratio == pytest.approx(ratio.plain_ms / ratio.fused_ms)
    assert ratio.largest_difference < 1e-12
    wrong = lambda *arguments: plain_objective(*arguments[:-2], 3, 2)  # noqa: E731
    monkeypatch.setattr("pybilevel.experiments.ratio.plain_objective", wrong)
    with pytest.raises(RuntimeError, match="differ by"):
        measure_ratio(*features(), lr=0.3, steps=4, ways=2)


@pytest.mark.parametrize("batch_norm", ["episode", "batch", "running"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_reach_the_encoder_and_the_step_size(batch_norm: Any, precision: Any) -> None:
    learner = MetaLearner(steps=2, filters=4, batch_norm=batch_norm, precision=precision)
    table, _ = tables()
    batch = table.gather(EpisodeSampler(table.classes, table.drawings, EpisodeShape(3, 1, 2), 0).indices(2))
    loss, logits = learner(batch)
    assert loss.shape == (2,)
    assert logits.shape == (2, 6, 3)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in learner.parameters())


def test_without_transduction_a_query_does_not_see_the_others() -> None:
    learner = MetaLearner(steps=2, filters=4)
    table, _ = tables()
    calibrate(learner, table, seed=0, images=100)
    batch = table.gather(EpisodeSampler(table.classes, table.drawings, EpisodeShape(3, 1, 2), 0).indices(2))
    learner.eval()
    before = {name: learner.features(batch, name)[1][:, 0] for name in ("episode", "running")}
    batch.query[:, 1:] = 0
    torch.testing.assert_close(learner.features(batch, "running")[1][:, 0], before["running"])
    assert (learner.features(batch, "episode")[1][:, 0] - before["episode"]).abs().max() > 1e-3


def test_accuracy_has_its_interval() -> None:
    learner, (table, _) = MetaLearner(steps=1, filters=4), tables()
    result = evaluate(learner, table, EpisodeShape(3, 1, 2), episodes=11, seed=0)
    assert result == evaluate(learner, table, EpisodeShape(3, 1, 2), episodes=11, seed=0)
    sampler = EpisodeSampler(table.classes, table.drawings, EpisodeShape(3, 1, 2), 0)
    each: list[float] = []
    for count in (8, 3):
        batch = table.gather(sampler.indices(count))
        each += correct(learner(batch)[1], batch.query_y).tolist()
    assert result.mean == pytest.approx(np.mean(each), abs=1e-6)
    assert result.interval == pytest.approx(1.96 * np.std(each, ddof=1) / math.sqrt(11), abs=1e-6)
