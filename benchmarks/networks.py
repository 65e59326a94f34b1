"""Inner problems that have no fused kernel: networks under the generic engine, `python -m benchmarks.networks`.

A case is a network whose training loss weighs its examples and penalises its parameters; the hypergradients are those
of the n example weights and of the penalty. Each contender runs in a process of its own, which reports its time, the
peak of its resident set above what was in use before, and its hypergradients, compared with those of `pybilevel` in
float64.

    python -m benchmarks.networks --only convnet      one case
    python -m benchmarks.networks --tiny                              the smoke test
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import machine, report
from benchmarks.architectures import Attention, Recurrent, convnet, perceptron
from benchmarks.measure import relative_errors
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.peers import training
from benchmarks.peers.training import Budgets

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, its data and its training.

    Attributes:
        build: width -> the network.
        shape: of one input.
        batch: number of training and of validation examples.
        width: of the network.
        steps: T.
        budgets: what `memory=` is given.
        lr: the step size.
    """

    name: str
    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    batch: int
    width: int
    steps: int
    budgets: Budgets
    lr: float = 0.05

    def tiny(self) -> Case:
        shape = (
            (4, 8) if len(self.shape) == 2 else self.shape
        )  # a sequence of vectors; an image or a vector stays
        return replace(self, shape=shape, batch=3, width=8, steps=3, budgets=Budgets("64MiB", "64MiB"))

    def summary(self) -> str:
        """Sizes in one line."""
        count = sum(p.numel() for p in self.build(self.width).parameters())
        return (
            f"{count:,} parameters, {self.batch} examples {list(self.shape)}, T={self.steps}, "
            f"{self.budgets.stated}, graphs kept in {self.budgets.eager}"
        )

    def problem(self, dtype: torch.dtype = torch.float32) -> training.Problem:
        """The same network and data for everybody."""
        torch.manual_seed(0)
        net = self.build(self.width).to(dtype)
        x, x_val = (torch.randn(self.batch, *self.shape).to(dtype) for _ in range(2))
        y, y_val = (torch.randint(0, 10, (self.batch,)) for _ in range(2))
        weights = torch.ones(self.batch, dtype=dtype, requires_grad=True)
        l2 = torch.tensor(1e-3, dtype=dtype, requires_grad=True)
        return training.Problem(net, x, y, x_val, y_val, weights, l2, self.lr, self.steps)


CASES = (
    Case("convnet", convnet, (1, 28, 28), 32, width=32, steps=500, budgets=Budgets("64MiB", "2.1GB")),
    Case("attention", Attention, (16, 64), 8, width=64, steps=100, budgets=Budgets("16MiB", "200MB")),
    Case("recurrent", Recurrent, (16, 64), 8, width=64, steps=100, budgets=Budgets("16MiB", "420MB")),
    Case("small", perceptron, (20,), 64, width=32, steps=100, budgets=Budgets("256KiB", "8.5MB")),
    Case("small-short", perceptron, (20,), 64, width=32, steps=20, budgets=Budgets("256KiB", "1.5MB")),
    Case(
        "linear",
        lambda _: nn.Linear(50, 10),
        (50,),
        200,
        width=50,
        steps=100,
        budgets=Budgets("512KiB", "4.5MB"),
    ),
)


OURS = "pybilevel, budget"  # the contender that the first ratio refers to
PLAIN = "eager"  # and the second
LEAST_SECONDS = 2.0  # of measuring: short runs are repeated more often


def measure(
    case: Case, name: str, repeats: int, least_seconds: float = LEAST_SECONDS
) -> tuple[dict[str, Any], training.Results]:
    """Seconds (the fastest of `repeats` or more), peak extra bytes (of the first run), and results of a contender."""
    run = training.CONTENDERS[name]
    problem = case.problem()
    run(problem._replace(steps=2), case.budgets)  # loads the libraries, starts the threads
    before = reset_peak("cpu")
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) < least_seconds:
        start = time.perf_counter()
        found = run(problem, case.budgets)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            peak = peak_bytes("cpu") - before
    return {"seconds": min(seconds), "peak_bytes": peak}, found


def rows(case: Case, names: Sequence[str], repeats: int, tiny: bool) -> Iterator[Row]:
    """One row a contender, each measured in a process of its own."""
    shape = case.tiny() if tiny else case
    exact = training.CONTENDERS[OURS](shape.problem(torch.float64), shape.budgets)
    for name in names:
        missing = training.missing(name)
        yield {"name": name} | ({"status": missing} if missing else _apart(case, name, repeats, tiny, exact))


def _apart(case: Case, name: str, repeats: int, tiny: bool, exact: training.Results) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "found.pt"
        command = [sys.executable, "-m", "benchmarks.networks", "--one", name, "--only", case.name]
        command += ["--repeats", str(repeats), "--keep", str(keep), *(["--tiny"] if tiny else [])]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            return {"status": f"failed: {last}"}
        found = torch.load(keep)
    return {
        "status": "ok",
        "errors": relative_errors(found, exact),
        **json.loads(done.stdout.splitlines()[-1]),
    }


def markdown(record: Row) -> str:
    """The record for people."""
    parts = [f"# Networks under the generic engine, commit {record['commit']}", report.provenance(record)]
    parts.append(
        f"Fastest of {record['repeats']} runs or more; peak: of the resident set, above what was in use before; error: "
        "of a hypergradient, relative, against pybilevel in float64."
    )
    for case in record["cases"]:
        timed = {row["name"]: row["seconds"] for row in case["rows"] if "seconds" in row}
        table = [["contender", "time", "times ours", "times eager", "peak extra memory", "error"]]
        table += [_cells(row, timed.get(OURS), timed.get(PLAIN)) for row in case["rows"]]
        parts += [f"## {case['name']}: {case['summary']}", report.markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, *others: float | None) -> list[str]:
    if "seconds" not in row:
        return [row["name"], row["status"], "", "", "", ""]
    ratios = [f"{row['seconds'] / other:.2f}" if other else "-" for other in others]
    peak = report.size(row["peak_bytes"], "B")
    error = f"{max(row['errors'].values()):.1e}"
    return [row["name"], report.seconds(row["seconds"]), *ratios, peak, error]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--contenders", nargs="+", choices=training.CONTENDERS, default=[*training.CONTENDERS]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few steps: the smoke test")
    parser.add_argument(
        "--one", choices=training.CONTENDERS, help="one contender, in this process: prints JSON"
    )
    parser.add_argument("--keep", type=Path, help="with --one: where to save its results")
    arguments = parser.parse_args(argv)
    cases = [case for case in CASES if case.name in arguments.only]
    if arguments.one:
        shape = cases[0].tiny() if arguments.tiny else cases[0]
        least = 0.0 if arguments.tiny else LEAST_SECONDS
        row, found = measure(shape, arguments.one, arguments.repeats, least)
        torch.save(found, arguments.keep)
        print(json.dumps(row))
        return 0
    record: Row = machine.provenance("python -m benchmarks.networks", argv, "cpu")
    record |= {"repeats": arguments.repeats, "cases": []}
    for case in cases:
        print(f"running {case.name} ...", flush=True)
        found_rows = list(rows(case, arguments.contenders, arguments.repeats, arguments.tiny))
        record["cases"].append({"name": case.name, "summary": case.summary(), "rows": found_rows})
    print(markdown(record))
    if not arguments.tiny:
        path = machine.ROOT / "benchmarks" / "results" / f"networks-cpu-{record['commit']}.json"
        report.write_json(record, path)
        path.with_suffix(".md").write_text(markdown(record))
    failed = [row for case in record["cases"] for row in case["rows"] if row["status"].startswith("failed")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
