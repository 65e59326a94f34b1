"""Data hyper-cleaning: the weights find wrong labels, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pybilevel as pb
from pybilevel.data.labelled import noisy_data
from pybilevel.experiments.hyperclean import HyperCleanSettings, compare, run_hyperclean, safe_step, spotting

QUICK = HyperCleanSettings(steps=60, iterations=25, lr=0.3)


def test_cleaning_finds_wrong_labels_and_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_hyperclean(QUICK, tmp_path)
    assert result.spotting.f1 > 0.85
    accuracy = {row.name.split(":")[0].split(" (")[0]: row.accuracy for row in result.rows}
    assert accuracy["cleaned"] > accuracy["everything"]
    assert accuracy["clean part only"] > accuracy["everything, without validation"] + 0.05
    losses = [point["loss"] for point in result.curve]
    assert losses[-1] < losses[0]
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["settings"]["steps"] == 60
    assert record["result"]["spotting"]["f1"] == result.spotting.f1
    said = capsys.readouterr().out
    assert all(row.name in said for row in result.rows)
    assert "Wrong labels spotted: F1" in said


def test_memory_does_not_change_results(tmp_path: Path) -> None:
    few = {"steps": 40, "iterations": 3}
    budget = budget_that_recomputes(few["steps"])
    free = run_hyperclean(HyperCleanSettings(**few), tmp_path / "a")
    tight = run_hyperclean(HyperCleanSettings(**few, memory=f"{budget} B"), tmp_path / "b")
    assert [point["loss"] for point in free.curve] == [point["loss"] for point in tight.curve]


def budget_that_recomputes(steps: int) -> int:
    """Bytes that hold three checkpoints of the run's inner problem, and no more."""
    data = noisy_data(None, noise=0.5, seed=0)
    logits = torch.zeros(len(data.train_y), requires_grad=True)
    inner = pb.SoftmaxRegression(
        data.train_x, data.train_y, num_classes=data.classes, weights=logits.sigmoid(), l2=1e-4
    )
    outer = pb.SoftmaxRegression(data.validation_x, data.validation_y, num_classes=data.classes)
    options = {"steps": steps, "optimizer": pb.SGD(0.1, momentum=0.9)}
    budget = pb.explain(pb.ho_objective, inner, outer, memory=pb.Revolve(3), **options).peak_memory
    bought = pb.explain(pb.ho_objective, inner, outer, memory=budget, **options)
    assert bought.slots == 3 and bought.recomputation > 1.5
    return budget


def test_spotting_counts() -> None:
    weights = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.4])
    clean = torch.tensor([True, False, False, False, True])
    found = spotting(weights, clean)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 / 3)
    assert spotting(torch.ones(3), torch.ones(3, dtype=torch.bool)).f1 == 0


def test_rows_count_their_examples() -> None:
    data = noisy_data(None, noise=0.5, seed=0)
    rows = compare(data, data.clean.float(), 5, pb.SGD(0.1))
    n, m, right = len(data.train_y), len(data.validation_y), int(data.clean.sum())
    assert [row.examples for row in rows] == [n + m, right + m, right + m, m, n]
    assert rows[1].accuracy == rows[2].accuracy


def test_the_safe_step_is_the_inverse_curvature() -> None:
    x = torch.rand(50, 7, dtype=torch.float64)
    problem = pb.SoftmaxRegression(x, torch.arange(50) % 2, num_classes=2)
    w = torch.zeros(8, 2, dtype=torch.float64)
    curvature = torch.autograd.functional.hessian(problem, w).reshape(16, 16)
    assert torch.linalg.eigvalsh(curvature)[-1] * safe_step(x) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("iterations", -1), ("lr", 0.0), ("inner_lr", -1.0), ("momentum", 1.0)]
)
def test_wrong_settings_are_clear_errors(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        HyperCleanSettings(**{name: value})  # type: ignore[arg-type]
