"""The benchmark suite works: every case runs tiny, everyone computes the same, and nobody vanishes from a report."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import measure, memory, report
from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.machine import Limits, measure_limits
from benchmarks.workloads import EFFECT_OF_T, FEW_SHOT, HYPER_CLEANING, Shape, Work

SMALL = CASES[0]
MISSING = ("not installed", "not importable", "not implemented")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fake(build: Callable[..., Any], **fields: Any) -> Contender:
    return Contender("fake", build, **fields)


def prepared(contender: Contender) -> dict[str, Any]:
    inputs = SMALL.workload.inputs(SMALL.tiny)
    reference, tolerance = measure.reference_results(SMALL.workload, SMALL.tiny, inputs)
    entry, _ = measure.prepare(contender, SMALL.workload, SMALL.tiny, inputs, reference, tolerance)
    return entry


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs_tiny_and_everyone_agrees(case: Case) -> None:
    record = measure.run_case(case, "cpu", repeats=1, tiny=True)
    entries = {entry["name"]: entry for entry in record["contenders"]}
    assert tuple(entries) == case.contenders
    statuses = {name: entry["status"] for name, entry in entries.items()}
    assert all(status == "ok" or status.startswith(MISSING) for status in statuses.values()), statuses
    assert statuses["pybilevel"] == "ok"
    assert all(entry["seconds"] > 0 for entry in entries.values() if entry["status"] == "ok")
    assert record["limit_seconds"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs_tiny_on_a_gpu(case: Case) -> None:
    record = measure.run_case(case, "cuda", repeats=1, tiny=True)
    assert all(e["status"] == "ok" or e["status"].startswith(MISSING) for e in record["contenders"])


def test_a_missing_contender_is_named_in_every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "JAX", replace(CONTENDERS["JAX"], requires="no_such_package"))
    case = measure.run_case(SMALL, "cpu", repeats=1, tiny=True, only=("eager", "JAX"))
    assert [entry["status"] for entry in case["contenders"]] == ["ok", "not installed"]
    printed = io.StringIO()
    report.show(whole(case), Console(file=printed, width=150))
    assert "not installed" in printed.getvalue()
    assert "| JAX | not installed |" in report.markdown(whole(case))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImportError("libx.so"), "not importable: libx.so"),
        (NotImplementedError("Adam"), "not implemented: Adam"),
        (ValueError("lr"), "failed: ValueError: lr"),
    ],
)
def test_a_contender_that_raises_is_reported(error: Exception, status: str) -> None:
    def build(*_: Any) -> Any:
        raise error

    assert prepared(fake(build))["status"] == status


def test_a_wrong_hypergradient_is_found_and_not_timed() -> None:
    eager = CONTENDERS["eager"].build

    def build(*arguments: Any) -> Any:
        run = eager(*arguments)
        return lambda: {**run(), "lr": run()["lr"] * 1.001}

    entry = prepared(fake(build))
    assert entry["status"].startswith("wrong: lr 1.0e-03, allowed 5.0e-06")
    assert "seconds" not in entry


def test_samples_are_interleaved_and_rotated() -> None:
    order: list[str] = []
    runs: dict[str, Any] = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measure.time_interleaved(runs, "cpu", repeats=3, sample_seconds=0.0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round only estimates the duration
    assert all(len(timing["samples"]) == 3 and timing["calls_per_sample"] == 1 for timing in times.values())


def test_work_matches_the_formulas_of_the_documentation() -> None:
    n, m, d, c, t = 5000, 5000, 784, 10, 100
    cleaning = HYPER_CLEANING.work(Shape(n=n, m=m, d=d, c=c, steps=t))
    assert cleaning.coordinates == "primal"
    assert cleaning.flops == 8 * n * d * c * t + 4 * m * d * c
    b, n, m, d = 1024, 5, 75, 64
    features = FEW_SHOT.work(Shape(tasks=b, n=n, m=m, d=d, c=5, steps=5))
    assert features.coordinates == "dual"
    assert features.bytes == b * (n + m) * (2 * 4 * d + 8)
    assert EFFECT_OF_T.work(Shape(n=300, m=300, d=256, c=100, steps=256)).coordinates == "dual"


@pytest.mark.parametrize("d", [4, 10, 40, 100])
def test_coordinates_switch_where_the_design_says(d: int) -> None:
    c, t = 7, 11
    crossover = 2 * d / (1 + 2 * d / (3 * c * t))
    for n in range(1, 300, 7):  # n d c of the dual end points is the only term that the rule neglects
        shape = Shape(tasks=1, n=n, m=0, d=d, c=c, steps=t)
        if abs(n - crossover) > 0.2 * crossover:
            assert FEW_SHOT.work(shape).coordinates == ("dual" if n < crossover else "primal")


def test_the_limit_is_the_slower_of_arithmetic_and_traffic() -> None:
    limits = Limits(flops=1e9, bandwidth=1e8)
    assert limits.seconds(Work(1e9, 1e7, "dual")) == (1.0, "flops")
    assert limits.seconds(Work(1e8, 1e9, "dual")) == (10.0, "bytes")
    assert all(rate > 0 for rate in measure_limits("cpu", tiny=True))


def whole(case: dict[str, Any]) -> dict[str, Any]:
    facts = {"device": "cpu", "commit": "c0ffee", "date": "today", "command": "make bench", "repeats": 1}
    return facts | {"machine": {"cpu": "abacus"}, "versions": {"torch": "2"}, "cases": [case]}


def test_report_gives_ratios_to_every_peer_and_the_share_of_the_limit() -> None:
    entries = [
        {"name": "pybilevel", "ours": True, "seconds": 0.002, "status": "ok"},
        {"name": "pybilevel unroll", "ours": True, "seconds": 0.001, "status": "ok"},
        {"name": "eager", "ours": False, "seconds": 0.04, "status": "ok"},
        {"name": "JAX", "ours": False, "seconds": 0.02, "status": "ok"},
    ]
    case = {"name": "x", "summary": "n=1", "target": ">= 5 x", "contenders": entries}
    case |= {"limit_seconds": 0.001, "limited_by": "bytes"}
    assert [report.ratio(case, entry) for entry in entries] == [1, 0.5, 20, 10]
    assert report.best_peer(case) is entries[3]
    rows = list(report.summary_rows(whole(case)))
    assert rows[1] == ["x", "n=1", "1 ms (bytes)", "2 ms", "50", "JAX 20 ms", "10", ">= 5 x"]


def test_command_writes_json_markdown_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "result.json"
    arguments = ["--tiny", "--threads", "1", "--only", SMALL.name, "--contenders", "pybilevel", "eager"]
    assert main([*arguments, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["commit"] and record["machine"]["cpu"] and record["versions"]["torch"]
    assert record["machine"]["threads"] == 1
    assert record["command"] == f"python -m benchmarks {' '.join(arguments)} --json {path}"
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".md", ".png"]
    printed = capsys.readouterr().out
    assert main(["--show", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"], ["--threads", "0"]])
def test_command_refuses_nonsense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("name", memory.CONTENDERS)
def test_memory_of_every_contender_is_measured(name: str) -> None:
    row = memory.measure(name, 2, "cpu", tiny=True)
    assert row["status"] == "ok" and row["peak_bytes"] >= 0


def test_the_meter_sees_what_a_pass_allocates() -> None:
    before = memory._reset("cpu")
    block = torch.ones(2**22)  # 16 MiB
    del block
    assert memory._peak("cpu") - before == pytest.approx(2**24, rel=0.1)


@pytest.mark.slow
def test_memory_case_runs_in_subprocesses() -> None:
    case = memory.run_memory("cpu", tiny=True)
    assert [row["status"] for row in case["rows"]] == ["ok"] * len(memory.CONTENDERS) * len(memory.TINY_STEPS)
    assert [row[0] for row in report.memory_rows(case)] == ["contender", *memory.CONTENDERS]


def test_gpu_script_is_valid_and_names_its_steps() -> None:
    script = Path(memory.ROOT) / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", str(script), "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no step 'dance'; steps: build test sanitize bench profile train" in done.stderr
