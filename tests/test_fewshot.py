"""Few-shot learning: encoder, objective, training, checkpoints, resuming, reports."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pybilevel.data.cache import DataError
from pybilevel.data.episodes import EpisodeSampler, EpisodeShape, EpisodeTable
from pybilevel.data.procedural import embedded_characters
from pybilevel.data.splits import split
from pybilevel.experiments import fewshot
from pybilevel.experiments.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint
from pybilevel.experiments.encoder import Encoder
from pybilevel.experiments.evaluation import calibrate, evaluate
from pybilevel.experiments.fewshot import run_fewshot
from pybilevel.experiments.interrupts import Interrupted, Interrupts
from pybilevel.experiments.meta_learner import MetaLearner, correct
from pybilevel.experiments.plain import plain_objective
from pybilevel.experiments.ratio import fused_objective, measure_ratio
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.training import Trainer
from pybilevel.experiments.workers import Workers

DATA = split(embedded_characters(alphabets=4, characters=10, drawings=8), sizes=(24, 8, 8))
TINY: dict[str, Any] = {
    "ways": 3, "queries": 3, "filters": 4, "meta_batch": 2, "validate_every": 4, "validation_episodes": 4,
    "test_episodes": 6, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "character_splits", lambda data, say: DATA)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread is fastest at these sizes; runs set the number themselves, so give it back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# -------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_come_back_and_damage_is_a_clear_error(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor(3)}
    save_checkpoint(tmp_path, Checkpoint(tensors, {"big": 2**100, "x": 0.1}))
    again = load_checkpoint(tmp_path)
    assert again.state == {"big": 2**100, "x": 0.1}
    assert all(torch.equal(again.tensors[name], tensors[name]) for name in tensors)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path)
    with pytest.raises(DataError, match="nothing to resume"):
        load_checkpoint(tmp_path / "elsewhere")


def test_a_signal_is_noted_once_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before, "a second signal acts as usual"
    assert signal.getsignal(signal.SIGTERM) == before


# ------------------------------------------------------------------------------------------- the whole run


def test_a_run_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_fewshot(FewShotSettings(**TINY, episodes=24), tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["data"] == "embedded characters"
    assert record["iterations"] == 12
    assert record["settings"]["ways"] == 3
    assert {"torch", "numpy", "python", "pybilevel", "command"} <= record["versions"].keys()
    assert list(record["test"]) == ["episode", "running"]
    assert record["test"]["episode"]["mean"] == result.tests["episode"].mean
    assert record["fused_over_plain"]["ratio"] > 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "Meta-test accuracy" in said
    assert "Fused objective against plain PyTorch" in said
    assert "Try next:" in said


def test_a_run_can_be_stopped_resumed_and_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FewShotSettings(**TINY, episodes=24)
    whole = run_fewshot(settings, tmp_path / "whole")
    step = Trainer._step

    def signalled(self: Trainer) -> None:
        step(self)
        if self.progress.iteration == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", signalled)
        with pytest.raises(Interrupted, match="--resume --out") as stop:
            run_fewshot(settings, tmp_path / "parts")
    assert stop.value.signal == signal.SIGINT
    assert load_checkpoint(tmp_path / "parts").state["progress"]["iteration"] == 5
    resumed = run_fewshot(settings, tmp_path / "parts", resume=True)
    assert resumed.tests == whole.tests
    a, b = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    longer = run_fewshot(settings.resumed({"episodes": 40}), tmp_path / "parts", resume=True)
    assert longer.reason == "all episodes seen"
    assert load_checkpoint(tmp_path / "parts").state["progress"]["iteration"] == 20


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pybilevel.cli",
        "fewshot",
        "--filters",
        "4",
        "--threads",
        "1",
        "--meta-batch",
        "2",
    ]
    command += [
        "--validation-episodes",
        "4",
        "--test-episodes",
        "4",
        "--validate-every",
        "20",
        "--episodes",
        "400",
    ]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, **quiet)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *command[3:], "--out", str(tmp_path / "parts")],
        env={**os.environ},
        **quiet,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "parts" / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_checkpoint(tmp_path / "parts").state["progress"]["iteration"] < 200
    subprocess.run([*command[:4], "--resume", "--out", str(tmp_path / "parts")], check=True, **quiet)
    a, b = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert a.state["sampler"] == b.state["sampler"]


KILLED = """
import sys
from pybilevel.experiments import fewshot
fewshot.SAVE_EVERY = 0.0
sys.argv[0] = "pybilevel"
from pybilevel.cli import main
main()
"""


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
