"""What the benchmark command writes and prints: tables, charts, and the comparison of two results."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_results import whole
from rich.console import Console

from benchmarks import against, measure, report
from benchmarks.__main__ import NAMES, main, parse
from benchmarks.cases import CASES
from benchmarks.contenders import CONTENDERS
from benchmarks.growth import CURVES

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = CASES[0]


def test_a_missing_contender_is_named_in_every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "JAX", replace(CONTENDERS["JAX"], requires="no_such_package"))
    case = measure.run_case(SMALL, "cpu", repeats=1, tiny=True, only=("eager", "JAX"))
    assert [entry["status"] for entry in case["contenders"]] == ["ok", "not installed"]
    printed = io.StringIO()
    report.show(whole(case), Console(file=printed, width=150))
    assert "not installed" in printed.getvalue()
    assert "| JAX | not installed |" in report.markdown(whole(case))


def test_report_gives_ratios_to_every_peer_and_the_share_of_the_limit() -> None:
    entries = [
        {"name": "pybilevel", "ours": True, "seconds": 0.002, "status": "ok"},
        {"name": "pybilevel unroll", "ours": True, "seconds": 0.001, "status": "ok"},
        {"name": "eager", "ours": False, "seconds": 0.04, "status": "ok"},
        {"name": "JAX", "ours": False, "seconds": 0.02, "status": "ok"},
        {"name": "eager closed form", "ours": False, "by_hand": True, "seconds": 0.01, "status": "ok"},
    ]
    case = {"name": "x", "summary": "n=1", "target": ">= 5 x", "contenders": entries}
    case |= {"limit_seconds": 0.001, "limited_by": "bytes", "call_seconds": 0.001}
    assert [report.ratio(case, entry) for entry in entries] == [1, 0.5, 20, 10, 5]
    assert report.best_peer(case) is entries[4]
    assert report.best_peer(case, by_hand=False) is entries[3]
    rows = list(report.summary_rows(whole(case)))
    assert rows[1] == [
        "x",
        "n=1",
        "1 ms (bytes)",
        "2 ms",
        "50",
        "eager closed form 10 ms",
        "5",
        "10",
        "5",
        ">= 5 x",
    ]
    del case["call_seconds"]  # a result of an earlier version
    assert list(report.summary_rows(whole(case)))[1][-2:] == ["-", ">= 5 x"]


def test_command_writes_json_markdown_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "result.json"
    arguments = ["--tiny", "--threads", "1", "--only", SMALL.name, "--contenders", "pybilevel", "eager"]
    assert main([*arguments, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["commit"] and record["machine"]["cpu"] and record["versions"]["torch"]
    assert record["machine"]["threads"] == 1
    assert record["command"] == f"python -m benchmarks {' '.join(arguments)} --json {path}"
    assert sorted(file.name for file in path.parent.iterdir()) == ["result.json", "result.md", "result.png"]
    printed = capsys.readouterr().out
    assert main(["--show", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--repeats", "0"],
        ["--threads", "0"],
        ["--fail-if-slower", "1.1"],
        ["--show", "/no/such/file"],
        ["--against", __file__],
    ],
)
def test_command_refuses_nonsense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_a_group_stands_for_its_curves() -> None:
    assert parse(["--only", "growth", SMALL.name]).only == [*(curve.name for curve in CURVES), SMALL.name]
    assert set(parse([]).only) == set(NAMES) > {curve.name for curve in CURVES}


def timed(name: str, seconds: float, fastest: float | None = None) -> dict[str, Any]:
    fastest = seconds if fastest is None else fastest
    mine = name.startswith("pybilevel")
    return {"name": name, "ours": mine, "status": "ok", "seconds": seconds, "fastest": fastest}


def result(*entries: dict[str, Any], flops: float = 1e11, **fields: Any) -> dict[str, Any]:
    """A result of one case that the arithmetic limits."""
    case = {"name": "x", "summary": "n=1", "shape": {"n": 1}, "target": "", "contenders": list(entries)}
    case |= {"limits": {"flops": flops, "bandwidth": 1e10}, "limited_by": "flops"}
    return whole(case | fields)


def compared(now: dict[str, Any], then: dict[str, Any]) -> against.Comparison:
    (comparison,) = against.compare(now, then)
    return comparison


def test_the_drift_of_the_peers_is_taken_out() -> None:
    peers = {"eager": (1.0, 2.0), "JAX": (1.0, 1.5), "higher": (1.0, 4.0), "new": (None, 9.0)}
    then = result(timed("pybilevel", 0.1), *(timed(n, t) for n, (t, _) in peers.items() if t))
    now = result(timed("pybilevel", 0.22), *(timed(n, t) for n, (_, t) in peers.items()))
    found = compared(now, then)
    assert found.ratio == pytest.approx(2.2)
    assert found.drift == 2.0  # the median of 1.5, 2 and 4
    assert found.clock == "3 peers, 1.5 .. 4"
    assert found.normalised == pytest.approx(1.1)
    assert found.slower_than(1.09) and not found.slower_than(1.11)


def test_a_faster_machine_does_not_hide_a_slower_pybilevel() -> None:
    then = result(timed("pybilevel", 0.1), timed("eager", 1.0))
    now = result(timed("pybilevel", 0.09), timed("eager", 0.5))
    assert compared(now, then).slower_than(1.1)


def test_median_and_fastest_must_agree() -> None:
    then = result(timed("pybilevel", 0.1, fastest=0.1), timed("eager", 1.0))
    burst = result(timed("pybilevel", 0.2, fastest=0.1), timed("eager", 1.0))
    lucky = result(timed("pybilevel", 0.1, fastest=0.2), timed("eager", 1.0))
    both = result(timed("pybilevel", 0.2, fastest=0.2), timed("eager", 1.0))
    assert [compared(now, then).slower_than(1.1) for now in (burst, lucky, both)] == [False, False, True]


def test_without_a_common_peer_the_measured_limit_is_the_clock() -> None:
    then = result(timed("pybilevel", 0.1), timed("eager", 1.0), flops=2e11)
    now = result(timed("pybilevel", 0.2), timed("JAX", 1.0), flops=1e11)
    found = compared(now, then)
    assert (found.drift, found.normalised, found.fastest) == (2.0, 1.0, 1.0)
    assert found.clock == "no common peer: the measured flops"


def test_what_cannot_be_compared_is_named() -> None:
    then = result(timed("pybilevel", 0.1))
    assert compared(result(timed("pybilevel", 9.0), name="y"), then).note == "not in the earlier result"
    other = result(timed("pybilevel", 9.0), shape={"n": 2}, summary="n=2")
    assert compared(other, then).note == "not comparable: n=1 then, n=2 now"
    assert not compared(other, then).slower_than(1.1)
    broken = result({"name": "pybilevel", "ours": True, "status": "failed: lr"})
    assert compared(broken, then).note == "no time now: failed: lr"
    assert compared(broken, then).slower_than(1.1)
    assert compared(then, broken).note == "no time of ours then" and not compared(then, broken).lost


def test_command_compares_two_files_and_fails_if_one_is_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, slower = tmp_path / "then.json", tmp_path / "now.json"
    arguments = ["--tiny", "--threads", "1", "--only", SMALL.name, "--contenders", "pybilevel", "eager"]
    assert main([*arguments, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    changed = copy.deepcopy(record)
    changed["versions"]["torch"] = "3.0"
    for key in ("seconds", "fastest"):
        changed["cases"][0]["contenders"][0][key] *= 1.5
    slower.write_text(json.dumps(changed))
    compare = ["--show", str(slower), "--against", str(path)]
    assert main(compare) == 0
    assert main([*compare, "--fail-if-slower", "1.6"]) == 0
    capsys.readouterr()
    assert main([*compare, "--fail-if-slower", "1.4"]) == 1
    printed = capsys.readouterr().out
    assert f"slower than 1.4 times before: {SMALL.name}" in printed
    assert f"torch {record['versions']['torch']} then, 3.0 now" in printed
    assert main(["--show", str(path), "--against", str(slower), "--fail-if-slower", "1.4"]) == 0
    assert main([*arguments, "--against", str(path), "--fail-if-slower", "1e-9"]) == 1  # runs, then compares
