"""The benchmark suite works: every case runs tiny, everyone computes the same, and nobody vanishes from a report."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import pybilevel as pb
from benchmarks import coordinates, measure, networks, precision
from benchmarks.cases import CASES, Case
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.machine import ROOT, Limits, measure_limits
from benchmarks.peers import compiled, training
from benchmarks.workloads import EFFECT_OF_T, FEW_SHOT, HYPER_CLEANING, RIDGE_TALL, Bilevel, Shape, Work

SMALL = CASES[0]
MISSING = ("not installed", "not importable", "not implemented", "needs a GPU")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """One thread, and torch.compile without its C++ compiler: tracing and both graphs stay, 6 s each go."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


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
    assert 1e-6 < record["call_seconds"] < 10


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs_tiny_on_a_gpu(case: Case) -> None:
    record = measure.run_case(case, "cuda", repeats=1, tiny=True)
    assert all(e["status"] == "ok" or e["status"].startswith(MISSING) for e in record["contenders"])


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


def test_another_tolerance_is_data_with_a_reason_and_is_reported() -> None:
    eager = CONTENDERS["eager"].build

    def build(*arguments: Any) -> Any:
        run = eager(*arguments)
        return lambda: {**run(), "lr": run()["lr"] * 1.00001}

    assert prepared(fake(build))["status"].startswith("wrong: lr 1.0e-05, allowed 5.0e-06")
    entry = prepared(fake(build, rounding=3.0, because="it rounds"))
    assert entry["status"] == "ok"
    assert (entry["tolerance"], entry["because"]) == (pytest.approx(1.5e-5), "it rounds")
    assert all(bool(c.because) == (c.rounding != 1.0) for c in CONTENDERS.values())


def test_a_contender_for_gpus_says_so_on_a_cpu() -> None:
    assert prepared(CONTENDERS["CUDA graph"])["status"] == "needs a GPU"
    assert CONTENDERS["CUDA graph"].missing("cuda") is None


def test_what_dynamo_cannot_trace_is_a_status_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(w: Tensor, b: Tensor, p: Bilevel, loss: str) -> tuple[Tensor, Tensor]:
        torch._dynamo.graph_break()
        return w, b

    monkeypatch.setattr(compiled, "step", untraceable)
    assert prepared(CONTENDERS["torch.compile"])["status"].startswith("not implemented: ")


@pytest.mark.parametrize("name", ["torch.compile", "torch.compile closed form"])
@pytest.mark.parametrize("steps", [compiled.WHOLE_STEPS, compiled.WHOLE_STEPS + 2])
def test_a_compiled_trajectory_is_compiled_once(name: str, steps: int) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph

    shape = replace(SMALL.tiny, steps=steps)
    inputs = SMALL.workload.inputs(shape)
    with mock.patch.object(compiled, "BACKEND", backend):
        run = CONTENDERS[name].build(SMALL.workload, shape, inputs)
        first, second = run(), run()
    assert len(graphs) == 1
    assert graphs[0] < 60 or steps <= compiled.WHOLE_STEPS  # one step, or all of them
    assert torch.equal(first["support"], second["support"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch.compile", "torch.compile closed form"])
def test_inductor_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    assert prepared(CONTENDERS[name])["status"] == "ok"


def test_samples_are_interleaved_and_rotated() -> None:
    order: list[str] = []
    runs: dict[str, Any] = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measure.time_interleaved(runs, "cpu", measure.Effort(repeats=3, sample_seconds=0.0))
    assert "".join(order) == "abc" + "bca" + "cab"  # the first round estimates the duration, and counts here
    assert all(len(timing["samples"]) == 3 and timing["calls_per_sample"] == 1 for timing in times.values())


def test_estimates_shorter_than_a_sample_do_not_count() -> None:
    calls: list[None] = []
    effort = measure.Effort(repeats=2, sample_seconds=10.0)  # 10 s hold more calls than a sample may have
    (timing,) = measure.time_interleaved({"a": lambda: calls.append(None) or {}}, "cpu", effort).values()
    assert timing["calls_per_sample"] == 1000
    assert len(timing["samples"]) == 2 and len(calls) == 1 + 1000 + 2 * 1000


def test_a_slow_first_call_does_not_shorten_samples() -> None:
    calls: list[None] = []

    def run() -> dict[str, Any]:
        time.sleep(0.001 if calls else 0.02)
        calls.append(None)
        return {}

    effort = measure.Effort(repeats=1, sample_seconds=0.04)
    (timing,) = measure.time_interleaved({"a": run}, "cpu", effort).values()
    assert timing["calls_per_sample"] > 8  # 0.04 s hold two calls like the first


def test_who_is_slow_gets_fewer_samples() -> None:
    def slow() -> dict[str, Any]:
        time.sleep(0.02)
        return {}

    effort = measure.Effort(repeats=7, sample_seconds=0.0, least_samples=2, most_seconds=0.03)
    times = measure.time_interleaved({"slow": slow, "fast": dict}, "cpu", effort)
    assert len(times["slow"]["samples"]) == 2
    assert len(times["fast"]["samples"]) == 7


def test_work_matches_the_formulas_of_the_documentation() -> None:
    n, m, d, c, t = 5000, 5000, 784, 10, 100
    cleaning = HYPER_CLEANING.work(Shape(n=n, m=m, d=d, c=c, steps=t))
    assert cleaning.coordinates == "primal"
    assert cleaning.flops == 8 * n * d * c * t + 4 * m * d * c
    b, n, m, d = 1024, 5, 75, 64
    features = FEW_SHOT.work(Shape(tasks=b, n=n, m=m, d=d, c=5, steps=5))
    assert features.coordinates == "dual"
    assert features.bytes == b * (n + m) * (2 * 4 * d + 8)
    n, m, d, c, t = 20000, 2000, 128, 10, 200
    ridge = RIDGE_TALL.work(Shape(n=n, m=m, d=d, c=c, steps=t))
    assert ridge.coordinates == "normal"
    assert ridge.flops == 6 * d * d * c * t + 4 * n * d * d + 4 * n * d * c + 4 * m * d * c


@pytest.mark.parametrize(
    ("shape", "coordinates"),
    [
        (Shape(n=300, m=300, d=256, c=100, steps=256), "normal"),
        (Shape(n=100, m=300, d=256, c=100, steps=256), "dual"),
        (Shape(n=300, m=300, d=256, c=2, steps=1), "primal"),  # no Gram matrix pays for one step
    ],
)
def test_squared_loss_takes_the_cheapest_of_three_coordinates(shape: Shape, coordinates: str) -> None:
    assert EFFECT_OF_T.work(shape).coordinates == coordinates


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
    measured = measure_limits("cpu", tiny=True)
    assert 1e8 < measured.flops < 1e14 and 1e7 < measured.bandwidth < 1e13


def test_gpu_script_is_valid_and_names_its_steps() -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", str(script), "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no step 'dance'; steps: build test sanitize bench precision profile train" in done.stderr


def test_the_figures_of_the_precisions_are_made_or_refused() -> None:
    rows = [row.split("|")[1:-1] for row in precision.table("cpu", tiny=True).splitlines()]
    names, fp32, *rounded = rows[0], *rows[2:]
    assert [row[0].strip() for row in (fp32, *rounded)] == ["fp32", "3xtf32", "tf32"]
    assert fp32[1].strip().endswith("ms") and all(0 <= float(error) < 5e-6 for error in fp32[2:])
    assert all(len(row) == len(names) and "device cpu (need cuda)" in row[1] for row in rounded)


def test_the_figures_of_the_coordinates_are_made() -> None:
    table = coordinates.rounding(
        [coordinates.Sizes(pb.LeastSquares, 9, 4, 2, 3), coordinates.Sizes(pb.SoftmaxRegression, 9, 4, 2, 3)]
    )
    (*squared, softmax) = (row.split("|")[2:-1] for row in table.splitlines()[2:])
    assert all(0 < float(error) < 5e-6 for error in squared[0])
    assert [bool(error.strip()) for error in softmax] == [True, True, False]
    errors = coordinates.effect_of_t(Shape(n=20, m=10, d=16, c=7, steps=9)).splitlines()[2].split("|")[2:-1]
    assert len(errors) == 3 and all(0 < float(error) < 5e-6 for error in errors)
    assert len(coordinates.lanes([(3, 3)], tasks=32, repeats=1).splitlines()) == 3


@pytest.mark.parametrize("case", networks.CASES, ids=lambda case: case.name)
def test_every_network_is_trained_alike_by_everyone(case: networks.Case) -> None:
    problem = case.tiny().problem()
    exact = training.CONTENDERS["pybilevel, budget"](case.tiny().problem(torch.float64), case.tiny().budgets)
    for name, run in training.CONTENDERS.items():
        if training.missing(name) is None:
            errors = measure.relative_errors(run(problem, case.tiny().budgets), exact)
            assert max(errors.values()) < measure.TOLERANCE, name


def test_the_networks_are_measured_apart_and_tabled(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--tiny",
        "--only",
        "convnet",
        "--repeats",
        "1",
        "--contenders",
        "pybilevel, budget",
        "eager",
    ]
    assert networks.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| pybilevel, budget | " in printed and "| eager | " in printed
    assert "failed" not in printed
