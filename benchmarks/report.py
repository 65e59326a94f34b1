"""A result record as tables for the terminal, as Markdown and as JSON; all pure functions of the record."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import charts
from benchmarks.workloads import SYMBOLS

Record = dict[str, Any]


def seconds(value: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def timed_cases(record: Record) -> list[Record]:
    """The cases with contenders; the others are curves: rows along an axis."""
    return [case for case in record["cases"] if "contenders" in case]


def timed(case: Record) -> list[Record]:
    return [entry for entry in case["contenders"] if "seconds" in entry]


def ours(case: Record) -> Record | None:
    """Our entry that the ratios refer to: the first of ours in the table, if it ran."""
    first = next((entry for entry in case["contenders"] if entry["ours"]), None)
    return first if first is not None and "seconds" in first else None


def ratio(case: Record, entry: Record) -> float | None:
    """How many times slower than ours `entry` is."""
    mine = ours(case)
    return entry["seconds"] / mine["seconds"] if mine and "seconds" in entry else None


def best_peer(case: Record, by_hand: bool = True) -> Record | None:
    """The fastest contender but ours; without `by_hand`, of those that need no inner gradient written by hand."""
    peers = [e for e in timed(case) if not e["ours"] and (by_hand or not e.get("by_hand", False))]
    return min(peers, key=lambda e: e["seconds"], default=None)


def percent_of_limit(case: Record, entry: Record) -> float | None:
    return 100 * case["limit_seconds"] / entry["seconds"] if "seconds" in entry else None


def most_times(case: Record) -> float | None:
    """How many times our time the best peer would need if ours were one call and the limit, and nothing else."""
    peer, call = best_peer(case), case.get("call_seconds")
    return peer["seconds"] / (case["limit_seconds"] + call) if peer and call else None


def show(record: Record, console: Console) -> None:
    """Every case as a table, then the summary."""
    for case in record["cases"]:
        console.print(case_table(case) if "contenders" in case else curve_table(case))
        for remark in remarks(case):
            console.print(remark)
    if timed_cases(record):
        console.print(summary_table(record))


def headline(case: Record) -> str:
    """Shape, work and limit of a case in one line."""
    work, limits = case["work"], case["limits"]
    call = case.get("call_seconds")
    return (
        f"{case['name']}: {case['summary']}; {size(work['flops'], 'FLOP')} ({work['coordinates']}), "
        f"{size(work['bytes'], 'B')}; limit {seconds(case['limit_seconds'])} by {case['limited_by']} "
        f"at {size(limits['flops'], 'FLOP/s')}, {size(limits['bandwidth'], 'B/s')}; "
        f"{f'a call {seconds(call)}; ' if call else ''}"
        f"target {case['target'] or 'none'}"
    )


def case_table(case: Record) -> Table:
    table = Table(title=headline(case), title_justify="left", title_style="bold")
    columns = ["contender", "median", "fastest .. slowest", "a task", "times ours", "% of limit", "error"]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for entry in case["contenders"]:
        table.add_row(*_cells(case, entry))
    return table


def _cells(case: Record, entry: Record) -> Iterator[str]:
    yield entry["name"]
    if "seconds" not in entry:
        yield entry["status"]
        return
    yield seconds(entry["seconds"])
    yield f"{seconds(entry['fastest'])} .. {seconds(entry['slowest'])}"
    tasks = case["shape"]["tasks"]
    yield seconds(entry["seconds"] / tasks) if tasks else ""
    yield _optional(ratio(case, entry), "{:.3g}")
    yield _optional(percent_of_limit(case, entry), "{:.2g}")
    yield f"{max(entry['errors'].values()):.1e}"


def summary_rows(record: Record) -> Iterator[list[str]]:
    """The table of the performance page: one row a case."""
    yield [
        *("case", "shape", "limit", "ours", "% of limit"),
        *("best peer", "times ours", "by autograd", "at most", "target"),
    ]
    for case in timed_cases(record):
        mine, peer, automatic = ours(case), best_peer(case), best_peer(case, by_hand=False)
        yield [
            case["name"],
            case["summary"],
            f"{seconds(case['limit_seconds'])} ({case['limited_by']})",
            seconds(mine["seconds"]) if mine else _first_of_ours(case),
            _optional(percent_of_limit(case, mine) if mine else None, "{:.2g}"),
            f"{peer['name']} {seconds(peer['seconds'])}" if peer else "none",
            _optional(ratio(case, peer) if peer else None, "{:.3g}"),
            _optional(ratio(case, automatic) if automatic else None, "{:.3g}"),
            _optional(most_times(case), "{:.3g}"),
            case["target"],
        ]


def _first_of_ours(case: Record) -> str:
    return next((entry["status"] for entry in case["contenders"] if entry["ours"]), "not selected")


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def summary_table(record: Record) -> Table:
    header, *rows = summary_rows(record)
    table = Table(*header, title="Summary", title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def remarks(case: Record) -> Iterator[str]:
    """Who was allowed another error than the rest, and why."""
    for entry in case.get("contenders", []):
        if "because" in entry:
            yield f"{entry['name']}: error allowed {entry['tolerance']:.1e}, since {entry['because']}"


def curve_headline(case: Record) -> str:
    bytes_wanted = any("peak_bytes" in row for row in case["rows"])
    quantity = "peak extra bytes" if bytes_wanted else "time"
    return f"{case['name']}: {quantity} of {case['workload']}, {case['summary']}"


def curve_rows(case: Record) -> Iterator[list[str]]:
    """One row a contender, one column a value of the axis, which is T in results that do not name one."""
    axis = case.get("axis", "steps")
    yield ["contender", *(f"{SYMBOLS[axis]}={value}" for value in case[axis])]
    by_name: dict[str, list[str]] = {}
    for row in case["rows"]:
        by_name.setdefault(row["name"], []).append(_measured(row))
    for name, cells in by_name.items():
        yield [name, *cells]


def _measured(row: Record) -> str:
    if "seconds" in row:
        return seconds(row["seconds"])
    return size(row["peak_bytes"], "B") if "peak_bytes" in row else row["status"]


def curve_table(case: Record) -> Table:
    header, *rows = curve_rows(case)
    table = Table(*header, title=curve_headline(case), title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def provenance(record: Record) -> str:
    """Machine, versions, date and command."""
    facts = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    return f"Machine: {facts}. Versions: {versions}. {record['date']}. Command: `{record['command']}`."


def markdown(record: Record) -> str:
    """The record for people: machine, versions, command, the summary, and every contender of every case."""
    parts = [
        f"# Benchmarks, {record['device']}, commit {record['commit']}",
        provenance(record),
        f"Medians of {record['repeats']} interleaved samples, fewer where calls are "
        "long; float32; times ours: time over our time; by autograd: that of the best peer whose inner gradient is not "
        "written by hand, as in the closed forms; at most: the best peer's time over the limit and the cost of a "
        "call, which is measured on a problem of next to no size.",
    ]
    if timed_cases(record):
        parts.append(markdown_table(list(summary_rows(record))))
    header = ["contender", "median", "fastest .. slowest", "a task", "times ours", "% of limit", "error"]
    for case in record["cases"]:
        if "contenders" not in case:
            parts += [f"## {curve_headline(case)}", markdown_table(list(curve_rows(case)))]
            continue
        rows = [[*_cells(case, entry)] for entry in case["contenders"]]
        padded = [row + [""] * (len(header) - len(row)) for row in rows]
        parts += [f"## {headline(case)}", markdown_table([header, *padded]), *remarks(case)]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: list[list[str]]) -> str:
    """The first row is the header."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def load(path: str) -> Record:
    """An earlier result; argparse reports what is wrong with the file."""
    try:
        record: Record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read the result {path}: {error}") from error
    if not isinstance(record, dict) or "cases" not in record:
        raise argparse.ArgumentTypeError(f"{path} is not a result of this command: it has no cases")
    return record


def write_json(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def write(record: Record, path: Path) -> list[Path]:
    """`path` (JSON), with the Markdown and, where matplotlib is installed, the charts beside it."""
    write_json(record, path)
    path.with_suffix(".md").write_text(markdown(record))
    mine = [(case, entry) for case in timed_cases(record) if ours(case) for entry in timed(case)]
    bars = [
        (f"{case['name']}  {entry['name']}", ratio(case, entry) or 0.0, entry["ours"]) for case, entry in mine
    ]
    curves = [case for case in record["cases"] if "rows" in case]
    title = f"{record['machine'].get('gpu', record['machine']['cpu'])}, commit {record['commit']}"
    return [path, path.with_suffix(".md"), *charts.write(bars, curves, title, path)]
