"""What a run shows while it works: a progress bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

LINE_EVERY = 10.0


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns of text, the first as wide as its widest entry."""
    width = max(len(left) for left, _ in rows)
    return [f"{left:<{width}}   {right}" for left, right in rows]


class Display:
    """Progress of one task from 0 to 1 with a text; a rich bar on a terminal, else a line every ten seconds.

    Use as a context manager; `say` prints a line above the bar.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._title = title
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = sys.stdout.isatty()
        self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=1.0, text="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, fraction: float, text: str) -> None:
        """Show how far the task is."""
        if self._live:
            self._bar.update(self._task, completed=fraction, text=text)
        elif time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            self.say(f"{self._title} {100 * fraction:3.0f} %  {text}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)
        sys.stdout.flush()
