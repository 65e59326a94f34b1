"""Few-shot learning by hyper-representation: the run from data to report.

Source: Franceschi et al. 2018, section 5.3; the protocol is in docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from pybilevel.data.episodes import EpisodeSampler, EpisodeShape, EpisodeTable
from pybilevel.data.sources import character_splits
from pybilevel.experiments.checkpoint import load_checkpoint, save_checkpoint
from pybilevel.experiments.closing import CURVES, RESULT, FewShotResult, closing_lines
from pybilevel.experiments.curves import plot_curves
from pybilevel.experiments.display import Display
from pybilevel.experiments.evaluation import TEST_SEED, calibrate, evaluate
from pybilevel.experiments.interrupts import Interrupted, Interrupts
from pybilevel.experiments.meta_learner import Normalisation
from pybilevel.experiments.ratio import Ratio, measure_ratio
from pybilevel.experiments.record import versions, write_json
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.training import Trainer

SAVE_EVERY = 20.0


def run_fewshot(settings: FewShotSettings, folder: Path, *, resume: bool = False) -> FewShotResult:
    """Train, test and report in `folder`: checkpoint.safetensors, result.json and curves.png.

    Errors: DataError for data that cannot be had, ValueError for settings that do not fit them,
    Interrupted on a signal.
    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    with Display(f"{settings.ways}-way {settings.shots}-shot") as display:
        splits = character_splits(settings.data, say=display.say)
        tables = {
            name: EpisodeTable(getattr(splits, name).images, settings.device)
            for name in ("train", "validation", "test")
        }
        display.say(
            f"Characters (x rotations): {splits.train.classes} to train, {splits.validation.classes} to validate, "
            f"{splits.test.classes} to test, all different."
        )
        shape = EpisodeShape(settings.ways, settings.shots, settings.queries)
        for name in ("validation", "test"):  # what does not fit is an error now, not after an hour
            EpisodeSampler(tables[name].classes, tables[name].drawings, shape, 0)
        trainer = Trainer(settings, tables["train"], tables["validation"], splits.train.source)
        if resume:
            trainer.restore(load_checkpoint(folder))
            display.say(f"Resumed at iteration {trainer.progress.iteration}.")
        reason = _train(trainer, folder, display)
        display.say(
            f"Training ended after {trainer.progress.iteration} iterations: {reason}. "
            f"Best validation {100 * trainer.progress.best:.2f} % at iteration {trainer.progress.best_iteration}."
        )
        result = _test(trainer, tables, reason, folder)
        _report(trainer, result)
        for line in closing_lines(settings, result, trainer.progress.seconds):
            display.say(line)
    return result


def _train(trainer: Trainer, folder: Path, display: Display) -> str:
    """Train with regular checkpoints; a signal makes one more and raises Interrupted."""
    saved = time.monotonic()
    with Interrupts() as interrupts:

        def after() -> bool:
            nonlocal saved
            display.update(trainer.fraction(), _status(trainer))
            if time.monotonic() - saved >= SAVE_EVERY:
                save_checkpoint(folder, trainer.checkpoint())
                saved = time.monotonic()
            return interrupts.received is not None

        reason = trainer.run(after)
        save_checkpoint(folder, trainer.checkpoint())
        if interrupts.received is not None:
            text = f"Stopped and saved. Go on with: pybilevel fewshot --resume --out {folder}"
            raise Interrupted(int(interrupts.received), text)
    return reason


def _status(trainer: Trainer) -> str:
    progress = trainer.progress
    speed = progress.iteration * trainer.settings.meta_batch / max(progress.seconds, 1e-9)
    text = f"{progress.iteration} it, {speed:.0f} episodes/s"
    if progress.curve:
        last = progress.curve[-1]
        text = f"loss {last['loss']:.3f}, accuracy {100 * last['accuracy']:.1f} %, {text}"
    if progress.validations:
        text += f", validation {100 * progress.validations[-1]['accuracy']:.1f} %"
    return text


def _test(trainer: Trainer, tables: dict[str, EpisodeTable], reason: str, folder: Path) -> FewShotResult:
    """Meta-test the best validated weights: as trained, and without transduction beside it."""
    settings, learner = trainer.settings, trainer.best
    shape = EpisodeShape(settings.ways, settings.shots, settings.queries)
    names: list[Normalisation] = [settings.batch_norm]
    if settings.batch_norm != "running":
        calibrate(learner, tables["train"], seed=settings.seed)
        names.append("running")
    tests = {
        name: evaluate(
            learner,
            tables["test"],
            shape,
            episodes=settings.test_episodes,
            seed=TEST_SEED,
            batch_norm=name,
            workers=trainer.workers,
        )
        for name in names
    }
    return FewShotResult(tests, _ratio(trainer, tables["test"], shape), reason, folder)


def _ratio(trainer: Trainer, table: EpisodeTable, shape: EpisodeShape) -> Ratio:
    """Fused against plain on the features of one meta-batch of test episodes."""
    settings, learner = trainer.settings, trainer.best.eval()
    sampler = EpisodeSampler(table.classes, table.drawings, shape, TEST_SEED)
    batch = table.gather(sampler.indices(settings.meta_batch))
    with torch.no_grad():
        support, query = learner.features(batch)
        lr = float(learner.inner_lr)
    return measure_ratio(
        support, batch.support_y, query, batch.query_y, lr=lr, steps=settings.steps, ways=settings.ways
    )


def _report(trainer: Trainer, result: FewShotResult) -> None:
    """Write result.json and curves.png."""
    settings, progress = trainer.settings, trainer.progress
    first = next(iter(result.tests.values()))
    record: dict[str, Any] = {
        "experiment": "fewshot",
        "data": trainer.source,
        "settings": settings.to_json(),
        "versions": versions(),
        "ended": result.reason,
        "iterations": progress.iteration,
        "episodes": progress.iteration * settings.meta_batch,
        "training_seconds": progress.seconds,
        "inner_step_size": float(trainer.best.inner_lr.detach()),
        "best_validation": {"accuracy": progress.best, "iteration": progress.best_iteration},
        "test": {name: dataclasses.asdict(accuracy) for name, accuracy in result.tests.items()},
        "fused_over_plain": dataclasses.asdict(result.ratio),
        "curve": progress.curve,
        "validations": progress.validations,
    }
    write_json(result.folder / RESULT, record)
    title = f"{trainer.source}: {settings.ways}-way {settings.shots}-shot, T = {settings.steps}"
    plot_curves(result.folder / CURVES, progress, title, first.mean)
