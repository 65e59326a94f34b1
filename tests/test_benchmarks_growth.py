"""Growth curves and peak memory: everyone runs tiny, what is too much is refused in words, and nobody vanishes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_results import whole

from benchmarks import charts, growth, measure, memory, report
from benchmarks.contenders import CONTENDERS, eager_bytes
from benchmarks.growth import CURVES, Curve
from benchmarks.workloads import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = CURVES[0]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_every_curve_runs_tiny_and_everyone_agrees(curve: Curve, tmp_path: Path) -> None:
    case = growth.run_curve(curve, "cpu", tiny=True)
    points = [(row[curve.axis], row["name"]) for row in case["rows"]]
    assert points == [(value, name) for value in curve.tiny_values for name in curve.contenders]
    assert [row["status"] for row in case["rows"]] == ["ok"] * len(points)
    assert all(row["seconds"] > 0 and row["reference"] == "eager float64" for row in case["rows"])
    assert [row[0] for row in report.curve_rows(case)] == ["contender", *curve.contenders]
    (written,) = charts.write([], [case], "title", tmp_path / "result.json")
    assert written.name == "result-growth.png" and written.stat().st_size > 10_000


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_only_one_size_of_a_curve_grows(curve: Curve) -> None:
    assert list(curve.values) == sorted(set(curve.values))
    for tiny in (False, True):
        assert replace(curve.at(5, tiny), **{curve.axis: 0}) == curve.at(0, tiny)
    assert max(eager_bytes(curve.at(value, tiny=False)) for value in curve.values) < 2 * growth.MOST_BYTES


def test_beyond_what_eager_affords_ours_in_float64_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "REFERENCE_SECONDS", 0.0)
    case = growth.run_curve(STEPS, "cpu", tiny=True)
    sources = [row["reference"] for row in case["rows"]]
    each = len(STEPS.contenders)
    assert sources == ["eager float64"] * each + ["pybilevel float64"] * each
    assert all(row["status"] == "ok" and max(row["errors"].values()) > 0 for row in case["rows"])


def test_too_much_is_refused_in_words_and_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = CONTENDERS["eager"]
    monkeypatch.setitem(CONTENDERS, "eager", replace(eager, holds=lambda s: 3e9 if s.steps > 2 else 0.0))
    case = growth.run_curve(STEPS, "cpu", tiny=True)
    refused = [row for row in case["rows"] if row["name"] == "eager" and row["steps"] > 2]
    assert [row["status"] for row in refused] == ["not run: would need about 3 GB"]
    assert "not run: would need about 3 GB" in report.markdown(whole(case))
    assert growth.too_much(eager, STEPS.at(1, tiny=False), expected=26.0) == "not run: would take about 26 s"
    assert growth.too_much(eager, STEPS.at(1, tiny=False), expected=9.0) is None


def test_the_expected_time_scales_the_last_one() -> None:
    rows = [
        {"name": "a", "d": 2, "seconds": 9.0},
        {"name": "a", "d": 4, "seconds": 1.0},
        {"name": "a", "d": 8},
    ]
    assert growth.expected_seconds(rows, "a", "d", 12) == 3.0
    assert growth.expected_seconds(rows, "b", "d", 12) is None


def test_the_error_of_eager_is_the_measure_of_the_others() -> None:
    reference = growth.Reference(STEPS, "cpu")
    reference.learn({"errors": {"weights": 1e-5, "l2": 1e-7}})
    assert reference.tolerance == measure.FACTOR * 1e-5
    reference.learn({"errors": {"weights": 1e-9}})
    assert reference.tolerance == measure.TOLERANCE


def test_a_wrong_result_on_a_curve_is_found_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = STEPS.contenders[0]
    right = CONTENDERS[name].build

    def build(*arguments: Any) -> Any:
        run = right(*arguments)
        return lambda: {**run(), "l2": run()["l2"] * 1.001}

    monkeypatch.setitem(CONTENDERS, name, replace(CONTENDERS[name], build=build))
    case = growth.run_curve(STEPS, "cpu", tiny=True, only=(name, "eager"))
    wrong = [row for row in case["rows"] if row["name"] == name]
    assert all(row["status"].startswith("wrong: l2 1.0e-03") and "seconds" not in row for row in wrong)


def test_the_model_of_what_eager_holds_is_near_the_truth() -> None:
    few, many = (Shape(n=300, m=10, d=40, c=10, steps=steps) for steps in (20, 220))
    held = [saved_bytes(shape) for shape in (few, many)]
    assert math.isclose(held[1] - held[0], eager_bytes(many) - eager_bytes(few), rel_tol=0.5)


def saved_bytes(shape: Shape) -> int:
    """Bytes of the distinct tensors that autograd saves in the eager unroll."""
    inputs = STEPS.workload.inputs(shape)
    own = {a.untyped_storage().data_ptr() for a in inputs.values()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        CONTENDERS["eager"].build(STEPS.workload, shape, inputs)()
    return sum(sizes.values())


@pytest.mark.parametrize("name", memory.MEASURED)
def test_memory_of_every_contender_is_measured(name: str) -> None:
    row = memory.measure(name, 2, "cpu", tiny=True)
    assert row["status"] == "ok" and row["peak_bytes"] >= 0


def test_the_meter_sees_what_a_pass_allocates() -> None:
    before = memory.reset_peak("cpu")
    # 64 MiB: malloc takes as much from the system, never from what was freed before
    block = torch.ones(2**24)
    del block
    assert memory.peak_bytes("cpu") - before == pytest.approx(2**26, rel=0.1)


@pytest.mark.slow
def test_memory_case_runs_in_subprocesses() -> None:
    case = memory.run_memory("cpu", tiny=True)
    assert [row["status"] for row in case["rows"]] == ["ok"] * len(memory.MEASURED) * len(memory.TINY_STEPS)
    assert [row[0] for row in report.curve_rows(case)] == ["contender", *memory.MEASURED]


def test_memory_refuses_what_would_need_too_much() -> None:
    with_all = [
        memory._row("eager", 10**6, "cpu", tiny=False),
        memory._row("pybilevel StoreAll", 10**6, "cpu", False),
    ]
    assert [row["status"].partition("about")[0] for row in with_all] == ["not run: would need "] * 2
