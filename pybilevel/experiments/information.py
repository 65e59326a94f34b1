"""What `pybilevel info` tells: versions, build, backends."""

from __future__ import annotations

import os
import platform

import torch

import pybilevel as pb


def information() -> dict[str, str]:
    """Facts about this installation by name, ready to print."""
    facts = {
        "pybilevel": str(pb.__version__),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }
    build = pb.build_info()
    facts |= {str(name).replace("_", " "): _text(value) for name, value in build.items()}
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    facts["backends"] = "generic (any PyTorch), fused on cpu" + (
        f", fused on cuda ({', '.join(gpus)})" if gpus and build.get("cuda") else ""
    )
    return facts


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
