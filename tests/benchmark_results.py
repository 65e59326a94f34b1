"""What the tests of the benchmarks share."""

from __future__ import annotations

from typing import Any


def whole(case: dict[str, Any]) -> dict[str, Any]:
    """The record of a run with this one case."""
    facts = {"device": "cpu", "commit": "c0ffee", "date": "today", "command": "make bench", "repeats": 1}
    return facts | {"machine": {"cpu": "abacus"}, "versions": {"torch": "2"}, "cases": [case]}
