"""Records of runs: JSON with settings, versions and results."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pybilevel as pb
from pybilevel.data.cache import atomic


def versions() -> dict[str, str | int]:
    """Versions and machine, for every result file."""
    return {
        "pybilevel": str(pb.__version__),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record, atomically; numbers that JSON lacks (nan, inf) become null."""
    with atomic(path) as file:
        file.write(
            (json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
