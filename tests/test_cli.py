"""The command line: options, folders, and errors of one line."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

import pybilevel as pb
from pybilevel import cli
from pybilevel.experiments import fewshot, hyperclean
from pybilevel.experiments.checkpoint import Checkpoint, save_checkpoint
from pybilevel.experiments.interrupts import Interrupted
from pybilevel.experiments.settings import FewShotSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["pybilevel", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path, bool]]:
    """The runs that the commands would start."""
    started: list[tuple[Any, Path, bool]] = []

    def run(settings: Any, folder: Path, resume: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        started.append((settings, folder, resume))

    monkeypatch.setattr(fewshot, "run_fewshot", run)
    monkeypatch.setattr(hyperclean, "run_hyperclean", run)
    return started


def test_version_and_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"pybilevel {pb.__version__}\n"
    assert call(monkeypatch, "info") == 0
    said = capsys.readouterr().out
    assert "backends" in said
    assert "build: compiler" in said


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    arguments = (
        "fewshot --data d --ways 20 --shots 5 --steps 3 --minutes 2 --meta-batch 8 --seed 4 --features 128"
    )
    assert call(monkeypatch, *arguments.split()) == 0
    expected = FewShotSettings(
        data="d", ways=20, shots=5, steps=3, minutes=2.0, meta_batch=8, seed=4, filters=32
    )
    assert runs == [(expected, Path("runs/fewshot-001"), False)]


def test_each_run_has_its_folder_and_resume_takes_the_latest(
    monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    for _ in range(2):
        call(monkeypatch, "fewshot")
    call(monkeypatch, "hyperclean", "--iterations", "3")
    assert [str(run[1]) for run in runs] == ["runs/fewshot-001", "runs/fewshot-002", "runs/hyperclean-001"]
    assert runs[2][0].iterations == 3
    settings = FewShotSettings(ways=7, episodes=100)
    save_checkpoint(Path("runs/fewshot-002"), Checkpoint({}, {"settings": settings.to_json()}))
    assert call(monkeypatch, "fewshot", "--resume", "--episodes", "200") == 0
    assert runs[-1] == (FewShotSettings(ways=7, episodes=200), Path("runs/fewshot-002"), True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("fewshot --data nowhere", "--data nowhere is not a folder. Leave --data out"),
        ("fewshot --data .", "expected images_background and images_evaluation"),
        ("fewshot --ways 1", "ways = 1 must be at least 2"),
        ("fewshot --features 30", "--features 30 must be a positive multiple of 4"),
        ("fewshot --resume", "there is no run to resume in runs/; say which with --out DIR"),
        ("fewshot --resume --out .", "nothing to resume"),
        ("fewshot --out file", "--out file is a file"),
        ("fewshot --out held", "held holds a run already: add --resume"),
        ("fewshot --out held --resume --ways 4", "ways = 4, but the run has 5"),
        ("fewshot --shots 15", "exceeds the 20 drawings of a class; lower --shots or --queries"),
        ("hyperclean --data nowhere", "--data nowhere is not a folder"),
        ("hyperclean --data .", "no MNIST files in"),
        ("hyperclean --noise 2", "noise = 2.0 must be between 0 and 1"),
        ("hyperclean --inner-lr 1e30 --steps 5 --iterations 1", "diverged"),
        ("hyperclean --memory 1KiB", "memory"),
    ],
)
def test_what_goes_wrong_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, text: str
) -> None:
    Path("file").touch()
    save_checkpoint(Path("held"), Checkpoint({}, {"settings": FewShotSettings().to_json()}))
    assert call(monkeypatch, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("pybilevel: error: ")
    assert text in said
    assert "Traceback" not in said


def test_unknown_options_are_usage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "fewshot", "--wayz", "3") == 2
    assert call(monkeypatch, "fewshot", "--ways", "many") == 2


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted(15, "Stopped and saved. Go on with: this")

    monkeypatch.setattr(fewshot, "run_fewshot", interrupted)
    assert call(monkeypatch, "fewshot") == 128 + 15
    assert "Go on with: this" in capsys.readouterr().err


@pytest.mark.parametrize(("absent", "command"), [("typer", "info"), ("safetensors", "fewshot")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str, command: str
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *arguments, **keywords)

    for name in [
        m for m in sys.modules if m.split(".")[0] == absent or m == "pybilevel.experiments.commands"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert call(monkeypatch, command, *(["--resume", "--out", "."] if command == "fewshot" else [])) == 2
    said = capsys.readouterr().err
    assert f"'{absent}" in said
    assert "pip install 'pybilevel[experiments]'" in said
