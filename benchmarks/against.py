"""Two results compared: is pybilevel slower than it was, whatever the machine did meanwhile?

Times of two runs on a shared machine differ because its neighbours differ. What did not change between them are the
peers, and they were timed in the same rounds as we were, so per case

    drift = median over the common peers of (their time now / their time then)
    normalised = (our time now / our time then) / drift

The machine's limits, measured just before the timing, are a poorer clock, since load changes within seconds: they serve
where two results share no peer. A case is slower by a factor only if both the medians and the fastest samples say so,
normalised each by its own drift: a burst of load moves a median, and one lucky call a minimum.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.report import Record

RATES = {"flops": "flops", "bytes": "bandwidth"}  # what limits a case -> the rate that was measured for it


@dataclass(frozen=True)
class Comparison:
    """One case. Without times, `note` says why there is nothing to compare, and `lost` whether we had one before."""

    name: str
    then: float | None = None
    now: float | None = None
    drift: float = 1.0
    clock: str = ""  # what the drift is from
    fastest: float = 1.0  # our fastest sample now over then, normalised
    note: str = ""
    lost: bool = False

    @property
    def ratio(self) -> float | None:
        return self.now / self.then if self.now is not None and self.then is not None else None

    @property
    def normalised(self) -> float | None:
        return None if self.ratio is None else self.ratio / self.drift

    def slower_than(self, factor: float) -> bool:
        return self.lost or (self.normalised is not None and min(self.normalised, self.fastest) > factor)


def compare(now: Record, then: Record) -> list[Comparison]:
    """The timed cases of `now`, in its order; those that `then` lacks, or that had another shape, with a note."""
    before = {case["name"]: case for case in report.timed_cases(then)}
    return [_compare(case, before.get(case["name"])) for case in report.timed_cases(now)]


def slower(comparisons: Sequence[Comparison], factor: float | None) -> list[str]:
    """The names of the cases that are slower by more than `factor`, or no longer run; none without a factor."""
    return [] if factor is None else [c.name for c in comparisons if c.slower_than(factor)]


def _compare(now: Record, then: Record | None) -> Comparison:
    name = now["name"]
    if then is None:
        return Comparison(name, note="not in the earlier result")
    if now["shape"] != then["shape"]:
        return Comparison(name, note=f"not comparable: {then['summary']} then, {now['summary']} now")
    mine, earlier = report.ours(now), report.ours(then)
    if earlier is None:
        return Comparison(name, note="no time of ours then")
    if mine is None:
        first = next((e for e in now["contenders"] if e["ours"]), None)
        note = "not selected" if first is None else f"no time now: {first['status']}"
        return Comparison(name, then=earlier["seconds"], note=note, lost=first is not None)
    if mine["name"] != earlier["name"]:
        return Comparison(name, note=f"not comparable: {earlier['name']} then, {mine['name']} now")
    drift, clock = drift_between(now, then, "seconds")
    fastest_drift, _ = drift_between(now, then, "fastest")
    fastest = mine["fastest"] / earlier["fastest"] / fastest_drift
    return Comparison(name, earlier["seconds"], mine["seconds"], drift, clock, fastest)


def drift_between(now: Record, then: Record, statistic: str) -> tuple[float, str]:
    """How many times longer the same work takes now, and what says so; `statistic` is "seconds" or "fastest"."""
    earlier = {entry["name"]: entry[statistic] for entry in report.timed(then) if not entry["ours"]}
    ratios = [
        entry[statistic] / earlier[entry["name"]]
        for entry in report.timed(now)
        if not entry["ours"] and entry["name"] in earlier
    ]
    if ratios:
        spread = f"{min(ratios):.3g} .. {max(ratios):.3g}"
        return statistics.median(ratios), f"{len(ratios)} peer{'s' * (len(ratios) > 1)}, {spread}"
    rate = RATES[now["limited_by"]]
    return then["limits"][rate] / now["limits"][rate], f"no common peer: the measured {rate}"


def caveats(now: Record, then: Record) -> Iterator[str]:
    """What differs besides our code, each as a line."""
    for key in ("machine", "versions"):
        before, after = then.get(key, {}), now.get(key, {})
        for fact in sorted(before.keys() | after.keys()):
            if before.get(fact) != after.get(fact) and fact != "pybilevel":
                yield f"not the same {key}: {fact} {before.get(fact)} then, {after.get(fact)} now"


def show(now: Record, then: Record, comparisons: Sequence[Comparison], console: Console) -> None:
    """The table, and what makes it doubtful."""
    title = f"pybilevel {now['commit']} ({now['date']}) against {then['commit']} ({then['date']})"
    table = Table(title=title, title_justify="left", title_style="bold")
    columns = ("case", "then", "now", "ratio", "drift", "drift from", "normalised", "normalised, fastest")
    for column in columns:
        table.add_column(column, justify="left" if column in ("case", "drift from") else "right")
    for c in comparisons:
        table.add_row(*_cells(c))
    console.print(table)
    for line in caveats(now, then):
        console.print(line)


def _cells(c: Comparison) -> list[str]:
    then, now = ("-" if value is None else report.seconds(value) for value in (c.then, c.now))
    if c.ratio is None or c.normalised is None:
        return [c.name, then, now, "-", "-", c.note, "-", "-"]
    figures = [f"{value:.3g}" for value in (c.ratio, c.drift, c.normalised, c.fastest)]
    return [c.name, then, now, figures[0], figures[1], c.clock, figures[2], figures[3]]
