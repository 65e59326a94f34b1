"""The native module itself (csrc/module.cpp), and the poison that the other tests rely on."""

from __future__ import annotations

import torch

import pybilevel
from pybilevel import _C


def test_build_info_matches_this_environment() -> None:
    info = _C.build_info()
    assert info["version"] == pybilevel.__version__
    assert info["torch"] == torch.__version__
    assert info["isa"][0] == "baseline" and info["isa_in_use"] in info["isa"]
    assert info["torch_cuda"] == (info["cuda"] and torch.version.cuda is not None)
    assert info["cuda"] == bool(info["cuda_compiler"]) == bool(info["cuda_architectures"])


def test_registry_rows_are_unique() -> None:
    registry = _C.registry()
    assert ("softmax", "dual") in registry["problems"]
    assert "sgd" in registry["optimizers"]
    for rows in registry.values():
        assert len(set(rows)) == len(rows)


def test_fresh_memory_is_poisoned() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.empty(7, dtype=torch.float64).isnan().all()
