"""Growth: how the time of one pass grows with one size of a problem. A curve is a row of the table below.

Results are checked before they are timed, as in the cases: against the float64 eager unroll where that takes less than
about `REFERENCE_SECONDS`, and beyond against ours in float64, with which the float32 eager unroll is compared too.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks import measure
from benchmarks.contenders import BUDGET, CONTENDERS, SLOTS, Contender, eager_bytes
from benchmarks.measure import Effort
from benchmarks.peers import Run, eager, ours
from benchmarks.workloads import FEW_SHOT, HYPER_CLEANING, Shape, Workload

MOST_BYTES = 2e9  # a contender that would hold more at a value,
MOST_SECONDS = 10.0  # or take longer, is not run there
REFERENCE_SECONDS = 1.0
EFFORT = Effort(repeats=3, sample_seconds=0.005, least_samples=1, most_seconds=1.0)

STEPPING = ("pybilevel StoreAll", f"pybilevel Revolve({SLOTS})", f"pybilevel {BUDGET}", "eager")


@dataclass(frozen=True)
class Curve:
    """The time of `contenders` on `workload` while the field `axis` of `shape` takes `values`."""

    name: str
    workload: Workload
    axis: str
    shape: Shape
    values: tuple[int, ...]
    tiny: Shape
    tiny_values: tuple[int, ...]
    contenders: tuple[str, ...] = ("pybilevel", "eager")

    def at(self, value: int, tiny: bool) -> Shape:
        return replace(self.tiny if tiny else self.shape, **{self.axis: value})


CURVES = (
    Curve(
        "growth-steps",
        HYPER_CLEANING,
        "steps",
        Shape(n=500, m=500, d=64, c=10, steps=0),
        (10, 30, 100, 300, 1000, 3000, 10000),
        tiny=Shape(n=20, m=9, d=6, c=10, steps=0),
        tiny_values=(2, 13),
        contenders=STEPPING,
    ),
    Curve(
        "growth-tasks",
        FEW_SHOT,
        "tasks",
        Shape(n=5, m=75, d=64, c=5, steps=5),
        (1, 4, 16, 64, 256, 1024, 4096),
        tiny=Shape(n=5, m=7, d=6, c=5, steps=3),
        tiny_values=(1, 4),
    ),
    Curve(
        "growth-d",
        FEW_SHOT,
        "d",
        Shape(tasks=64, n=5, m=75, d=0, c=5, steps=5),
        (4, 16, 64, 256, 1024, 4096),
        tiny=Shape(tasks=2, n=5, m=7, d=0, c=5, steps=3),
        tiny_values=(3, 8),
    ),
    Curve(
        "growth-n",
        HYPER_CLEANING,
        "n",
        Shape(n=0, m=500, d=64, c=10, steps=30),
        (10, 30, 100, 300, 1000, 3000, 10000, 30000),
        tiny=Shape(n=0, m=9, d=6, c=10, steps=3),
        tiny_values=(3, 25),
        contenders=("pybilevel", f"pybilevel Revolve({SLOTS})", "eager"),
    ),
)


def run_curve(curve: Curve, device: str, tiny: bool = False, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record of one curve: one row a contender and value."""
    values = curve.tiny_values if tiny else curve.values
    contenders = [CONTENDERS[name] for name in curve.contenders if not only or name in only]
    reference = Reference(curve, device)
    rows: list[dict[str, Any]] = []
    for value in values:
        shape = curve.at(value, tiny)
        expected = {name: expected_seconds(rows, name, curve.axis, value) for name in curve.contenders}
        refused = {c.name: too_much(c, shape, expected[c.name]) for c in contenders}
        for entry in _point(curve, shape, contenders, refused, reference, device, tiny):
            rows.append({curve.axis: value} | entry)
    return {
        "name": curve.name,
        "workload": curve.workload.name,
        "summary": str(curve.at(0, tiny)),
        "axis": curve.axis,
        curve.axis: list(values),
        "rows": rows,
    }


def expected_seconds(rows: list[dict[str, Any]], name: str, axis: str, value: int) -> float | None:
    """The last time of a contender, scaled to `value` as if it grew in proportion; None: it has no time yet."""
    timed = [row for row in rows if row["name"] == name and "seconds" in row]
    return timed[-1]["seconds"] * value / timed[-1][axis] if timed else None


def too_much(contender: Contender, shape: Shape, expected: float | None) -> str | None:
    """The status of a contender that shall not run at this shape; None if it shall."""
    needed = contender.holds(shape) if contender.holds else 0.0
    if needed > MOST_BYTES:
        return f"not run: would need about {needed / 1e9:.2g} GB"
    if expected is not None and expected > MOST_SECONDS:
        return f"not run: would take about {expected:.2g} s"
    return None


class Reference:
    """What the results along one curve are compared with, and how far they may be from it."""

    def __init__(self, curve: Curve, device: str) -> None:
        self.workload = curve.workload
        self.tolerance = measure.TOLERANCE
        self.rate = 0.0  # seconds over the size of the steps, of the last float64 eager unroll
        warm_up = curve.at(curve.tiny_values[-1], tiny=True)
        eager.build(self.workload, warm_up, measure.inputs_on(device, self.workload, warm_up))()

    def results(self, shape: Shape, inputs: dict[str, Tensor]) -> tuple[measure.Results, str]:
        """The results at one shape, and who made them: the float64 eager unroll while that is affordable."""
        double = measure.in_double(inputs)
        size = max(shape.tasks, 1) * shape.steps * shape.n * shape.d
        if self.rate * size > REFERENCE_SECONDS or 2 * eager_bytes(shape) > MOST_BYTES:
            return ours.build(self.workload, shape, double)(), "pybilevel float64"
        start = time.perf_counter()
        results = eager.build(self.workload, shape, double)()
        self.rate = (time.perf_counter() - start) / size
        return results, "eager float64"

    def learn(self, entry: dict[str, Any]) -> None:
        """Take the float32 error of the eager unroll for the measure of the others, as in the cases."""
        if "errors" in entry:
            self.tolerance = max(measure.TOLERANCE, measure.FACTOR * max(entry["errors"].values()))


def _point(
    curve: Curve,
    shape: Shape,
    contenders: list[Contender],
    refused: dict[str, str | None],
    reference: Reference,
    device: str,
    tiny: bool,
) -> list[dict[str, Any]]:
    """One entry a contender at one shape: equality first, then timing."""
    inputs = measure.inputs_on(device, curve.workload, shape)
    exact, source = reference.results(shape, inputs)
    entries: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for contender in sorted(contenders, key=lambda contender: contender.name != "eager"):
        refusal = refused[contender.name]
        if refusal is not None:
            entries[contender.name] = {"name": contender.name, "ours": contender.ours, "status": refusal}
            continue
        standard = contender.name == "eager"
        tolerance = math.inf if standard else reference.tolerance
        entry, run = measure.prepare(contender, curve.workload, shape, inputs, exact, tolerance)
        if standard:
            reference.learn(entry)
        entries[contender.name] = entry | {"reference": source}
        if run is not None:
            runs[contender.name] = run
    for name, timing in measure.time_interleaved(runs, device, measure.TINY if tiny else EFFORT).items():
        entries[name] |= timing
    return [entries[contender.name] for contender in contenders]
