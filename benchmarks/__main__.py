"""Run the benchmarks: `python -m benchmarks [--only CASE ...] [--repeats N] [--tiny] [--json FILE]`.

Exit status 1 if any contender failed or computed something wrong; missing ones are reported and cost nothing. With
`--against FILE` our times are compared with those of an earlier result, and `--fail-if-slower FACTOR` is a reason too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import against, machine, report
from benchmarks.cases import CASES, MEMORY
from benchmarks.contenders import CONTENDERS
from benchmarks.growth import CURVES, run_curve
from benchmarks.measure import run_case
from benchmarks.memory import run_memory

NAMES = (*(case.name for case in CASES), *(curve.name for curve in CURVES), MEMORY)
GROUPS = {"growth": tuple(curve.name for curve in CURVES)}  # what `--only` takes for several
RESULTS = machine.ROOT / "benchmarks" / "results"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*NAMES, *GROUPS),
        default=NAMES,
        metavar="CASE",
        help=", ".join((*NAMES, *GROUPS)),
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=(), metavar="NAME", help=", ".join(CONTENDERS)
    )
    parser.add_argument("--repeats", type=int, default=9, help="samples of every contender (default 9)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, one sample: the smoke test")
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/DEVICE-COMMIT.json (none with --tiny)"
    )
    parser.add_argument(
        "--show", type=report.load, metavar="FILE", help="print the tables of an earlier result and stop"
    )
    parser.add_argument(
        "--against",
        type=report.load,
        metavar="FILE",
        help="compare our times with an earlier result; with --show, two earlier results",
    )
    parser.add_argument(
        "--fail-if-slower",
        type=float,
        metavar="FACTOR",
        help="with --against: exit with 1 if a case is slower by this factor, the machine's drift taken out",
    )
    arguments = parser.parse_args(argv)
    arguments.only = [name for given in arguments.only for name in GROUPS.get(given, (given,))]
    if arguments.fail_if_slower is not None and (arguments.against is None or arguments.fail_if_slower <= 0):
        parser.error("--fail-if-slower takes a factor > 0 and needs --against FILE")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    if arguments.show:
        report.show(arguments.show, console)
        return compared(arguments.show, arguments, console)
    torch.set_num_threads(arguments.threads)
    record = header(arguments, argv)
    path = arguments.json or (None if arguments.tiny else default_path(arguments, record["commit"]))
    for name in arguments.only:
        console.print(f"running {name} ...", style="dim")
        record["cases"].append(run(name, arguments))
        if path:  # after every case: a run that is cut short keeps what it has
            report.write_json(record, path)
    report.show(record, console)
    if path:
        for written in report.write(record, path):
            console.print(f"wrote {written}")
    return max(compared(record, arguments, console), int(bool(broken(record))))


def compared(record: dict[str, Any], arguments: argparse.Namespace, console: Console) -> int:
    """Print the comparison that was asked for; 1 if it is a reason to fail."""
    if arguments.against is None:
        return 0
    comparisons = against.compare(record, arguments.against)
    against.show(record, arguments.against, comparisons, console)
    slower = against.slower(comparisons, arguments.fail_if_slower)
    if slower:
        console.print(f"slower than {arguments.fail_if_slower:g} times before: {', '.join(slower)}")
    return int(bool(slower))


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    if name == MEMORY:
        return run_memory(arguments.device, arguments.tiny)
    curve = next((curve for curve in CURVES if curve.name == name), None)
    if curve is not None:
        return run_curve(curve, arguments.device, arguments.tiny, tuple(arguments.contenders))
    case = next(case for case in CASES if case.name == name)
    repeats = 1 if arguments.tiny else arguments.repeats
    return run_case(case, arguments.device, repeats, arguments.tiny, tuple(arguments.contenders))


def header(arguments: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, Any]:
    return machine.provenance("python -m benchmarks", argv, arguments.device) | {
        "device": arguments.device,
        "dtype": "float32",
        "tiny": arguments.tiny,
        "repeats": 1 if arguments.tiny else arguments.repeats,
        "cases": [],
    }


def default_path(arguments: argparse.Namespace, commit: str) -> Path:
    only = [] if len(arguments.only) == len(NAMES) else list(arguments.only)
    return RESULTS / ("-".join([arguments.device, commit.replace("+", "-dirty"), *only]) + ".json")


def broken(record: dict[str, Any]) -> list[str]:
    """Contenders that ran and should not have been believed: failed or wrong."""
    entries = [entry for case in record["cases"] for entry in case.get("contenders", case.get("rows", []))]
    return [entry["name"] for entry in entries if entry["status"].startswith(("failed", "wrong"))]


if __name__ == "__main__":
    sys.exit(main())
