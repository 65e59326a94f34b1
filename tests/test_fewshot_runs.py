"""Few-shot learning: checkpoints, and whole runs that report, stop, resume and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fewshot_cases import DATA, TINY

from pybilevel.data.cache import DataError
from pybilevel.experiments import fewshot
from pybilevel.experiments.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint
from pybilevel.experiments.fewshot import run_fewshot
from pybilevel.experiments.interrupts import Interrupted, Interrupts
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.training import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "character_splits", lambda data, say: DATA)


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
