"""Who ran the benchmark, and how fast that machine can be: both go into every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.workloads import Work

ROOT = Path(__file__).resolve().parents[1]
VERSIONED = ("torch", "numpy", "jax", "jaxlib", "higher", "torchopt", "pybilevel")


class Limits(NamedTuple):
    """Best of several runs: a limit is what the machine can do, not what it usually does."""

    flops: float  # square float32 GEMM, multiply-adds counted as 2, per second
    bandwidth: float  # a copy far larger than the caches, bytes read plus bytes written, per second

    def seconds(self, work: Work) -> tuple[float, str]:
        """The least time for `work`, and what sets it: "flops" or "bytes"."""
        arithmetic, traffic = work.flops / self.flops, work.bytes / self.bandwidth
        return (arithmetic, "flops") if arithmetic >= traffic else (traffic, "bytes")


def measure_limits(device: str, tiny: bool = False) -> Limits:
    """Square-GEMM rate and copy bandwidth of `device`, now (about a second; `tiny` is for the smoke test)."""
    size = 128 if tiny else 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    b, out = torch.randn_like(a), torch.empty_like(a)
    gemm = _best(lambda: torch.mm(a, b, out=out), device)
    source = torch.ones(2**16 if tiny else 2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    return Limits(2 * size**3 / gemm, 2 * source.nbytes / copy)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _best(operation: Callable[[], object], device: str, repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        synchronize(device)
        start = time.perf_counter()
        operation()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def describe(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory and GPU: what a reader needs to judge the times."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
        facts["cuda"] = torch.version.cuda
    return facts


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def provenance(program: str, argv: Sequence[str] | None, device: str) -> dict[str, Any]:
    """What every result says of where it comes from; `argv` None: the arguments of this process."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*program.split(), *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "machine": describe(device),
        "versions": versions(),
    }


def commit() -> str:
    """The short commit, "+" appended if tracked files differ; PYBILEVEL_COMMIT where there is no git."""
    given = os.environ.get("PYBILEVEL_COMMIT")
    if given:
        return given
    head = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{head}+" if head and changed else head or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
