"""Checkpoints: one safetensors file, tensors and state together, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pybilevel.data.cache import DataError, atomic

FILE = "checkpoint.safetensors"
FORMAT = 1


@dataclass
class Checkpoint:
    """Named tensors and a JSON-able state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    format: int = field(default=FORMAT)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/checkpoint.safetensors`: after a crash at any moment the old or the new file is there, complete."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = save(tensors, {"format": str(checkpoint.format), "state": json.dumps(checkpoint.state)})
    with atomic(folder / FILE) as file:
        file.write(data)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Errors: DataError where there is none, or one that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise DataError(f"no checkpoint in {folder}: nothing to resume. Leave --resume out to start there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            state = json.loads(metadata["state"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"the checkpoint {path} cannot be read: {error}. Start again with another --out."
        ) from error
    if metadata.get("format") != str(FORMAT):
        raise DataError(
            f"the checkpoint {path} has format {metadata.get('format')}; this version reads {FORMAT}."
        )
    return Checkpoint(tensors, state)


def copy_into(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> None:
    """Copy tensors by name, keeping the memory format of the targets.

    Errors: DataError on names or shapes that do not match.
    """
    if targets.keys() != sources.keys():
        raise DataError(
            f"the checkpoint does not fit: {sorted(targets.keys() ^ sources.keys())} on one side only."
        )
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != sources[name].shape:
                raise DataError(f"the checkpoint does not fit: {name} is {list(sources[name].shape)}.")
            target.copy_(sources[name])
