"""The contenders: one file per library, all with the same signature.

    build(workload, shape, inputs) -> run        run() -> {"value": E, leaf: dE/dleaf for every leaf}

`build` does everything a user does once (conversion, compilation); `run` is one forward and one reverse pass. A
`build` or first `run` that raises ImportError or NotImplementedError is reported as such, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.workloads import Shape, Workload

Run = Callable[[], Mapping[str, Any]]
Build = Callable[[Workload, Shape, dict[str, Any]], Run]
