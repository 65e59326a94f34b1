"""Peak memory of forward and reverse against the number of steps, each in a process of its own.

Measured is what the pass adds: on a CPU the peak of the resident set (VmHWM, reset after a warm-up) over the resident
set before it, on a GPU the peak of the device allocator over what is allocated before.

    python -m benchmarks.memory eager 100 cpu --tiny          one measurement: prints a JSON object
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import MEMORY
from benchmarks.contenders import CONTENDERS
from benchmarks.growth import STEPPING, too_much
from benchmarks.machine import ROOT, synchronize
from benchmarks.measure import inputs_on
from benchmarks.workloads import HYPER_CLEANING, Shape

SHAPE = Shape(
    n=500, m=500, d=64, c=10, steps=0
)  # as growth-steps, so that both say what memory costs in time
TINY = Shape(n=40, m=10, d=8, c=10, steps=0)
STEPS, TINY_STEPS = (10, 100, 1000, 10000), (2, 5)
MEASURED = STEPPING


def run_memory(device: str, tiny: bool = False) -> dict[str, Any]:
    """The record of the memory case: one row a contender and number of steps."""
    steps, shape = (TINY_STEPS, TINY) if tiny else (STEPS, SHAPE)
    return {
        "name": MEMORY,
        "workload": HYPER_CLEANING.name,
        "summary": str(shape),
        "axis": "steps",
        "steps": list(steps),
        "rows": [_row(name, count, device, tiny) for name in MEASURED for count in steps],
    }


def _row(name: str, steps: int, device: str, tiny: bool) -> dict[str, Any]:
    refusal = too_much(CONTENDERS[name], replace(TINY if tiny else SHAPE, steps=steps), expected=None)
    if refusal:
        return {"name": name, "steps": steps, "status": refusal}
    return _in_subprocess(name, steps, device, tiny)


def _in_subprocess(name: str, steps: int, device: str, tiny: bool) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        name,
        str(steps),
        device,
        *(["--tiny"] if tiny else []),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    row = {"name": name, "steps": steps}
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return row | {"status": f"failed: {last}"}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | measured


def measure(name: str, steps: int, device: str, tiny: bool) -> dict[str, Any]:
    """Status, and the bytes that one forward and reverse pass adds at its peak."""
    shape = replace(TINY if tiny else SHAPE, steps=steps)
    try:
        _runner(name, replace(TINY, steps=2), device)()  # loads the libraries and starts their threads
        run = _runner(name, shape, device)
    except (ImportError, NotImplementedError) as error:
        return {"status": f"not available: {error}"}
    synchronize(device)
    before = reset_peak(device)
    run()
    synchronize(device)
    return {"status": "ok", "peak_bytes": peak_bytes(device) - before}


def _runner(name: str, shape: Shape, device: str) -> Callable[[], Any]:
    return CONTENDERS[name].build(HYPER_CLEANING, shape, inputs_on(device, HYPER_CLEANING, shape))


def reset_peak(device: str) -> int:
    """Start to look for the peak; the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    """The most bytes in use since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {field}: the memory case needs Linux")
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=MEASURED)
    parser.add_argument("steps", type=int)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.contender, arguments.steps, arguments.device, arguments.tiny)))
