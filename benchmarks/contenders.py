"""The registry of contenders: who they are, and what has to be there for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import Build, compiled, eager, functional, graphed, jax_scan, one_task, ours
from benchmarks.workloads import Shape

SLOTS = 10
BUDGET = "1MiB"


@dataclass(frozen=True)
class Contender:
    """One contender.

    Attributes:
        name: as in the tables.
        build: see `benchmarks.peers`.
        requires: the package that must be there; None for PyTorch itself.
        ours: whether it is pybilevel.
        needs_gpu: whether it exists on a GPU only.
        by_hand: whether somebody derived the inner gradient and wrote it down, which no user of ours needs to.
        rounding: the factor on the tolerance of the others, 1 but for a reason that `because` states.
        because: that reason.
        holds: a model of the bytes that one pass holds; the growth curves stop before it is too much.
    """

    name: str
    build: Build
    requires: str | None = None
    ours: bool = False
    needs_gpu: bool = False
    by_hand: bool = False
    rounding: float = 1.0
    because: str = ""
    holds: Callable[[Shape], float] | None = None

    def missing(self, device: str) -> str | None:
        """Why it cannot run at all on "cpu" or "cuda"; None if it may."""
        if self.requires is not None and importlib.util.find_spec(self.requires) is None:
            return "not installed"
        return "needs a GPU" if self.needs_gpu and device != "cuda" else None


def eager_bytes(shape: Shape) -> float:
    """What autograd keeps of T steps, in float32: 3 arrays of n x c and 2 of d x c a step and task (measured)."""
    n, d, c = shape.n, shape.d, shape.c
    return 4.0 * max(shape.tasks, 1) * shape.steps * (3 * n * c + 2 * d * c)


def store_all_bytes(shape: Shape) -> float:
    """All iterates W, in float32; fewer bytes in dual coordinates."""
    return 4.0 * max(shape.tasks, 1) * shape.steps * (shape.d + 1) * shape.c


_COLUMN_SUMS = (
    "Inductor sums the n rows of the bias gradient one by one on a CPU: 20 x the error of eager at n = 5000"
)

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("pybilevel", ours.build, "pybilevel", ours=True),
        Contender("pybilevel unroll", ours.build_unroll, "pybilevel", ours=True),
        Contender("pybilevel one by one", ours.build_one_by_one, "pybilevel", ours=True),
        Contender("pybilevel spectral", ours.build_spectral, "pybilevel", ours=True),
        Contender(
            "pybilevel StoreAll",
            ours.with_memory(lambda pb: pb.StoreAll()),
            "pybilevel",
            ours=True,
            holds=store_all_bytes,
        ),
        Contender(
            f"pybilevel Revolve({SLOTS})",
            ours.with_memory(lambda pb: pb.Revolve(SLOTS)),
            "pybilevel",
            ours=True,
        ),
        Contender(f"pybilevel {BUDGET}", ours.with_memory(lambda _: BUDGET), "pybilevel", ours=True),
        Contender("eager", eager.build, holds=eager_bytes),
        Contender("eager closed form", eager.build_closed_form, by_hand=True),
        Contender("eager one by one", eager.build_one_by_one),
        Contender("vmap(grad)", functional.build),
        Contender("torch.compile", compiled.build, rounding=4.0, because=_COLUMN_SUMS),
        Contender(
            "torch.compile closed form",
            compiled.build_closed_form,
            by_hand=True,
            rounding=4.0,
            because=_COLUMN_SUMS,
        ),
        Contender("CUDA graph", graphed.build, needs_gpu=True),
        Contender("CUDA graph closed form", graphed.build_closed_form, needs_gpu=True, by_hand=True),
        Contender("JAX", jax_scan.build, "jax"),
        Contender("JAX checkpoint", jax_scan.build_checkpoint, "jax"),
        Contender("higher", one_task.build_higher, "higher"),
        Contender("torchopt", one_task.build_torchopt, "torchopt"),
    )
}
