"""The registry of contenders: who they are, and what has to be installed for them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from benchmarks.peers import Build, eager, functional, jax_scan, one_task, ours


@dataclass(frozen=True)
class Contender:
    """One contender; `requires` is the package that must be there, None for PyTorch itself."""

    name: str
    build: Build
    requires: str | None = None
    ours: bool = False

    @property
    def installed(self) -> bool:
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("pybilevel", ours.build, "pybilevel", ours=True),
        Contender("pybilevel unroll", ours.build_unroll, "pybilevel", ours=True),
        Contender("pybilevel one by one", ours.build_one_by_one, "pybilevel", ours=True),
        Contender("eager", eager.build),
        Contender("eager closed form", eager.build_closed_form),
        Contender("eager one by one", eager.build_one_by_one),
        Contender("vmap(grad)", functional.build),
        Contender("JAX", jax_scan.build, "jax"),
        Contender("higher", one_task.build_higher, "higher"),
        Contender("torchopt", one_task.build_torchopt, "torchopt"),
    )
}
