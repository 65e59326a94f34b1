"""Few-shot learning: training, resuming, and the settings that govern both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewshot_cases import run, same, tables, trainer

from pybilevel.data.cache import DataError
from pybilevel.data.episodes import EpisodeShape
from pybilevel.experiments.checkpoint import load_checkpoint, save_checkpoint
from pybilevel.experiments.evaluation import evaluate
from pybilevel.experiments.meta_learner import MetaLearner
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.workers import Workers

pytestmark = pytest.mark.usefixtures("one_thread")

# ----------------------------------------------------------------------------------------------- training


def test_training_learns() -> None:
    learning = trainer(filters=8, meta_batch=4, episodes=400, validate_every=50, validation_episodes=30)
    assert run(learning) == "all episodes seen"
    accuracies = [point["accuracy"] for point in learning.progress.curve]
    assert np.mean(accuracies[-4:]) > 0.1 + np.mean(accuracies[:2])
    assert learning.progress.best > 0.6


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer()
    assert run(whole) == "all episodes seen"
    for stop in (0, 1, 7, 12):  # before the first step, within a window, at and after a validation
        first = trainer()
        if stop:
            assert run(first, stop) == "interrupted"
        save_checkpoint(tmp_path, first.checkpoint())
        second = trainer()
        second.restore(load_checkpoint(tmp_path))
        assert second.progress.iteration == stop
        run(second)
        same(whole, second)


def test_two_threads_resume_bitwise_and_agree_with_one() -> None:
    one, two, again = (
        trainer(meta_batch=3),
        trainer(meta_batch=3, threads=2),
        trainer(meta_batch=3, threads=2),
    )
    for each in (one, two):
        run(each)
    run(again, 5)
    resumed = trainer(meta_batch=3, threads=2)
    resumed.restore(again.checkpoint())
    run(resumed)
    same(two, resumed)
    assert (one.workers.count, two.workers.count) == (1, 2)
    losses = ([point["loss"] for point in each.progress.curve] for each in (one, two))
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_workers_do_not_change_an_evaluation() -> None:
    learner, (table, _) = MetaLearner(steps=1, filters=4), tables()
    results = [
        evaluate(learner, table, EpisodeShape(3, 1, 2), episodes=20, seed=0, workers=Workers(count))
        for count in (1, 3)
    ]
    assert results[0] == results[1]


def test_seeds_decide() -> None:
    a, b, c = trainer(), trainer(), trainer(seed=1)
    for each in (a, b, c):
        run(each)
    same(a, b)
    assert not torch.equal(
        a.checkpoint().tensors["learner.log_step"], c.checkpoint().tensors["learner.log_step"]
    )


def test_training_stops_when_validation_does_not_improve() -> None:
    stale = trainer(lr=1e-12, averaging=0.0, validate_every=1, patience=3, episodes=1000)
    assert run(stale) == "no better validation in 3"
    assert stale.progress.iteration < 50


def test_time_is_a_budget() -> None:
    timed = trainer(minutes=0.3 / 60, episodes=None)
    assert run(timed) == "time spent"
    assert 0.3 <= timed.progress.seconds < 5
    assert timed.fraction() == 1.0


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    broken = trainer()
    with torch.no_grad():
        broken.learner.encoder.norms[3].weight.fill_(math.inf)
    with pytest.raises((FloatingPointError, RuntimeError), match=r"iteration 10; lower|diverged"):
        run(broken)


def test_other_data_cannot_be_resumed() -> None:
    checkpoint = trainer().checkpoint()
    checkpoint.state["source"] = "Omniglot"
    with pytest.raises(DataError, match="trained on Omniglot"):
        trainer().restore(checkpoint)
    with pytest.raises(DataError, match="does not fit"):
        trainer(filters=5).restore(trainer().checkpoint())


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ways": 1}, "ways = 1 must be at least 2"),
        ({"shots": 0}, "shots = 0 must be positive"),
        ({"steps": -1}, "steps = -1 must be positive"),
        ({"minutes": 0.0}, "minutes = 0.0 must be positive"),
        ({"lr": math.nan}, "lr = nan must be positive"),
        ({"averaging": 1.0}, "averaging = 1.0"),
        ({"seed": -1}, "seed = -1"),
        ({"batch_norm": "layer"}, "batch_norm = 'layer' must be one of episode, batch, running"),
        ({"precision": "half"}, "precision = 'half' must be one of float32, bfloat16"),
        ({"device": "abacus"}, "device = 'abacus'"),
    ],
)
def test_wrong_settings_are_clear_errors(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        FewShotSettings(**change)


def test_settings_come_back_and_only_budgets_change() -> None:
    settings = FewShotSettings(ways=4, minutes=1.0)
    assert FewShotSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.resumed({"minutes": 2.0, "ways": 4}).minutes == 2.0
    with pytest.raises(ValueError, match="ways = 5, but the run has 4"):
        settings.resumed({"ways": 5})


def test_budgets() -> None:
    assert FewShotSettings().budget_seconds == 75
    assert FewShotSettings(episodes=9, meta_batch=4).budget_iterations == 3
    assert FewShotSettings(episodes=9).budget_seconds == math.inf
    assert FewShotSettings(data="x").budget_seconds == 18 * 60
