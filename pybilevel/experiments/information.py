"""What `pybilevel info` tells: versions, build, backends."""

from __future__ import annotations

import os
import platform

import torch

import pybilevel as pb


def information() -> dict[str, str]:
    """Facts about this installation by name, ready to print."""
    build = pb.build_info()
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    facts = {
        "pybilevel": str(pb.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
        "backends": "generic, fused on CPU" + (", fused on CUDA" if gpus and build["cuda"] else ""),
    }
    hidden = {"version"}
    return facts | {
        f"build: {name.replace('_', ' ')}": _text(build[name]) for name in build if name not in hidden
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(str(name) for name, present in value.items() if present)
    return str(value)
