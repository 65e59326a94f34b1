"""Run one case: equality first, then interleaved timing of everyone who computes the right thing."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.machine import Limits, measure_limits, synchronize
from benchmarks.peers import Run, eager
from benchmarks.workloads import Shape, Workload

TOLERANCE = 5e-6  # relative error in the 2-norm that anybody may have in float32, and
FACTOR = 2.0  # this many times the float32 error of the eager unroll, where that is more
CALL = "pybilevel"  # the contender whose cost of a call is measured beside the machine's limits
CALLS = 50  # of which the fastest is what one costs
IDLE_SECONDS = 0.01  # before each sample: the previous contender's OpenMP threads stop spinning meanwhile

Results = Mapping[str, Any]


class Effort(NamedTuple):
    """How much time a measurement may take."""

    repeats: int  # samples of every contender
    # a sample repeats the call until it lasts about this long: as in a training, all but its first find warm caches
    sample_seconds: float = 0.1
    least_samples: int = 3  # a contender that has as many leaves the rounds when its samples together took
    most_seconds: float = 6.0  # so long


TINY = Effort(repeats=1, sample_seconds=0.0)  # the smoke test


def run_case(
    case: Case, device: str, repeats: int, tiny: bool = False, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The record of one case: shape, work, limits, and one entry a contender, in the order of the table."""
    shape = case.at(device, tiny)
    inputs = inputs_on(device, case.workload, shape)
    names = [name for name in case.contenders if not only or name in only]
    reference, tolerance = reference_results(case.workload, shape, inputs)
    entries, runs = {}, {}
    for name in names:
        entries[name], run = prepare(CONTENDERS[name], case.workload, shape, inputs, reference, tolerance)
        if run is not None:
            runs[name] = run
    limits = measure_limits(device, tiny)
    for name, timing in time_interleaved(runs, device, TINY if tiny else Effort(repeats)).items():
        entries[name] |= timing
    return {
        "name": case.name,
        "shape": shape.as_dict(),
        "summary": str(shape),
        "target": case.cuda_target if device == "cuda" else case.target,
        "leaves": list(case.workload.leaves),
        "tolerance": tolerance,
        **limit_entry(case.workload, shape, limits),
        "call_seconds": call_seconds(case, shape, device, 1 if tiny else CALLS),
        "contenders": list(entries.values()),
    }


def inputs_on(device: str, workload: Workload, shape: Shape) -> dict[str, Tensor]:
    return {name: a.to(device) for name, a in workload.inputs(shape).items()}


def limit_entry(workload: Workload, shape: Shape, limits: Limits) -> dict[str, Any]:
    """The unavoidable work of the case, and the time this machine needs for it at its own best rates."""
    work = workload.work(shape)
    seconds, bound = limits.seconds(work)
    return {
        "work": work._asdict(),
        "limits": limits._asdict(),
        "limit_seconds": seconds,
        "limited_by": bound,
    }


def call_seconds(case: Case, shape: Shape, device: str, calls: int) -> float | None:
    """What a call of `CALL` costs that has next to nothing to do: Python, autograd's nodes, allocation, dispatch.

    Before each call as many bytes are copied as the case must move, since those have passed the caches since the last
    call of a training, too. The fastest of `calls`.
    """
    if CALL not in case.contenders:
        return None
    least = Shape(n=2, m=2, d=1, c=2, steps=1, tasks=min(shape.tasks, 1))
    run = CONTENDERS[CALL].build(case.workload, least, inputs_on(device, case.workload, least))
    source = torch.ones(max(int(case.workload.work(shape).bytes) // 8, 1), device=device)
    target = torch.empty_like(source)
    run()
    seconds = []
    for _ in range(calls):
        target.copy_(source)
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def reference_results(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> tuple[Results, float]:
    """The float64 eager unroll, and the tolerance: 5e-6, or twice the error of the same unroll in float32."""
    reference = eager.build(workload, shape, in_double(inputs))()
    plain = relative_errors(eager.build(workload, shape, inputs)(), reference)
    return reference, max(TOLERANCE, FACTOR * max(plain.values()))


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: a.double() if a.is_floating_point() else a for name, a in inputs.items()}


def prepare(
    contender: Contender,
    workload: Workload,
    shape: Shape,
    inputs: dict[str, Tensor],
    reference: Results,
    tolerance: float,
) -> tuple[dict[str, Any], Run | None]:
    """Build, warm up and check one contender: its entry, and what to time if its results are right."""
    entry: dict[str, Any] = {"name": contender.name, "ours": contender.ours, "by_hand": contender.by_hand}
    missing = contender.missing(inputs["lr"].device.type)
    if missing:
        return entry | {"status": missing}, None
    if contender.rounding != 1.0:
        tolerance *= contender.rounding
        entry |= {"tolerance": tolerance, "because": contender.because}
    try:
        run = contender.build(workload, shape, inputs)
        errors = relative_errors(run(), reference)
    except ImportError as error:
        return entry | {"status": f"not importable: {error}"}, None
    except NotImplementedError as error:
        return entry | {"status": f"not implemented: {error}"}, None
    except Exception as error:  # one broken contender must not hide the others; the exit status tells
        return entry | {"status": f"failed: {type(error).__name__}: {error}"}, None
    entry["errors"] = errors
    wrong = [f"{name} {error:.1e}" for name, error in errors.items() if not error <= tolerance]
    if wrong:
        return entry | {"status": f"wrong: {', '.join(wrong)}, allowed {tolerance:.1e}"}, None
    return entry | {"status": "ok"}, run


def relative_errors(results: Results, reference: Results) -> dict[str, float]:
    """2-norm of the difference over the 2-norm of the reference, for the value and every hypergradient."""
    errors = {}
    for name, exact in reference.items():
        difference = torch.linalg.vector_norm(as_double(results[name]) - as_double(exact))
        errors[name] = float(difference / torch.linalg.vector_norm(as_double(exact)))
    return errors


def as_double(array: Any) -> Tensor:
    """Any library's array as a float64 tensor on the CPU."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    return tensor.detach().to("cpu", torch.float64)


def time_interleaved(runs: Mapping[str, Run], device: str, effort: Effort) -> dict[str, dict[str, Any]]:
    """`effort.repeats` samples of every contender, in rounds that start with a different one each time.

    Interleaving spreads a drift of the machine (frequency, neighbours) over all contenders alike; the median then
    ignores the rounds it hit. Garbage is collected between samples and never inside one. Who is slow gets fewer
    samples, see `Effort`. The call that estimates the duration counts as a sample where it lasted as long as one.
    """
    gc.collect()
    gc.freeze()  # what is alive now (modules, inputs) need not be scanned before every sample
    try:
        once = {name: _sample(run, 1, device) for name, run in runs.items()}
        calls = {name: _calls(run, once[name], device, effort) for name, run in runs.items()}
        samples = {name: [once[name]] if calls[name] == 1 else [] for name in runs}
        names = list(runs)
        for turn in range(1, effort.repeats + 1):
            shift = turn % max(len(names), 1)
            for name in names[shift:] + names[:shift]:
                if not _enough(samples[name], calls[name], effort):
                    samples[name].append(_sample(runs[name], calls[name], device))
    finally:
        gc.unfreeze()
    return {
        name: {
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "samples": times,
            "calls_per_sample": calls[name],
        }
        for name, times in samples.items()
    }


def _calls(run: Run, first: float, device: str, effort: Effort) -> int:
    """How many calls last as long as a sample; the first, of `first` seconds, may take three times as long."""
    calls = _most(effort.sample_seconds / first)
    return calls if calls == 1 else _most(effort.sample_seconds / _sample(run, calls, device))


def _most(calls: float) -> int:
    return max(1, min(1000, math.ceil(calls)))


def _enough(samples: list[float], calls: int, effort: Effort) -> bool:
    long = len(samples) >= effort.least_samples and sum(samples) * calls >= effort.most_seconds
    return long or len(samples) >= effort.repeats


def _sample(run: Run, calls: int, device: str) -> float:
    gc.collect()
    gc.disable()
    time.sleep(IDLE_SECONDS)
    try:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()
