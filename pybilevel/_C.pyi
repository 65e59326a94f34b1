"""Types of the native module (csrc/module*.cpp)."""

from typing import Any

def build_info() -> dict[str, Any]:
    """Versions, instruction sets and CUDA state of this build."""

def registry() -> dict[str, list[Any]]:
    """The rows of csrc/registry.def: "problems" [(loss, coordinates), ...] and "optimizers" [name, ...]."""
