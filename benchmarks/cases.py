"""The table of cases. To add a workload, add a row; the smoke test, the runner and the report follow.

Targets are those of the project's performance page: a ratio to the best peer on a CPU, an absolute time on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.sinusoid import SINUSOID
from benchmarks.workloads import EFFECT_OF_T, FEW_SHOT, HYPER_CLEANING, RIDGE_TALL, Shape, Workload

OURS = ("pybilevel", "pybilevel unroll")
PEERS = (
    *("eager", "eager closed form", "vmap(grad)"),
    *("CUDA graph", "CUDA graph closed form"),
    *("JAX", "JAX checkpoint"),
)
BATCHED = (*OURS, *PEERS)
COMPILED = (*BATCHED, "torch.compile", "torch.compile closed form")  # compiling takes too long for every case
SQUARED = (*OURS, "pybilevel spectral", *PEERS)
TALL = ("pybilevel", "pybilevel spectral", "eager", "eager closed form", "CUDA graph closed form", "JAX")
NETWORKS = ("pybilevel", "pybilevel unroll", "eager", "vmap(grad)", "CUDA graph", "JAX", "JAX checkpoint")
ONE_BY_ONE = ("pybilevel", "pybilevel one by one", "eager one by one", "higher", "torchopt")


@dataclass(frozen=True)
class Case:
    """One row: a workload at its shapes, who competes, and what is aimed at."""

    name: str
    workload: Workload
    shape: Shape
    tiny: Shape
    cuda: Shape | None = None  # the shape on a GPU; None: the same
    contenders: tuple[str, ...] = BATCHED
    target: str = ""  # on a CPU: the ratio to the best peer
    cuda_target: str = ""  # on an H200

    def at(self, device: str, tiny: bool) -> Shape:
        if tiny:
            return self.tiny
        return self.cuda if device == "cuda" and self.cuda else self.shape


CASES = (
    Case(
        "few-shot-5w1s",
        FEW_SHOT,
        Shape(tasks=256, n=5, m=75, d=64, c=5, steps=5),
        tiny=Shape(tasks=3, n=5, m=7, d=6, c=5, steps=3),
        cuda=Shape(tasks=1024, n=5, m=75, d=64, c=5, steps=5),
        contenders=COMPILED,
        target=">= 20 x",
        cuda_target="<= 20 us (floor 10 us)",
    ),
    Case(
        "few-shot-5w1s-long",
        FEW_SHOT,
        Shape(tasks=256, n=5, m=75, d=64, c=5, steps=50),
        tiny=Shape(tasks=2, n=5, m=7, d=6, c=5, steps=12),
        cuda=Shape(tasks=1024, n=5, m=75, d=64, c=5, steps=50),
        target=">= 60 x",
        cuda_target="<= 30 us (floor 15 us)",
    ),
    Case(
        "few-shot-5w1s-wide",
        FEW_SHOT,
        Shape(tasks=256, n=5, m=75, d=256, c=5, steps=5),
        tiny=Shape(tasks=3, n=5, m=7, d=33, c=5, steps=3),
        cuda=Shape(tasks=1024, n=5, m=75, d=256, c=5, steps=5),
        target=">= 15 x",
        cuda_target="<= 60 us (floor 39 us)",
    ),
    Case(
        "few-shot-5w1s-wide-long",
        FEW_SHOT,
        Shape(tasks=256, n=5, m=75, d=256, c=5, steps=50),
        tiny=Shape(tasks=2, n=5, m=7, d=33, c=5, steps=12),
        cuda=Shape(tasks=1024, n=5, m=75, d=256, c=5, steps=50),
        target=">= 60 x",
        cuda_target="<= 70 us (floor 45 us)",
    ),
    Case(
        "few-shot-5w5s",
        FEW_SHOT,
        Shape(tasks=64, n=25, m=75, d=256, c=5, steps=16),
        tiny=Shape(tasks=2, n=15, m=10, d=20, c=5, steps=4),
        target=">= 15 x",
    ),
    Case(
        "few-shot-20w5s",
        FEW_SHOT,
        Shape(tasks=32, n=100, m=300, d=64, c=20, steps=16),
        tiny=Shape(tasks=2, n=40, m=20, d=9, c=20, steps=4),
        cuda=Shape(tasks=64, n=100, m=300, d=64, c=20, steps=16),
        contenders=COMPILED,
        target=">= 5 x",
        cuda_target="<= 50 us (floor 24 us)",
    ),
    Case(
        "hyper-cleaning",
        HYPER_CLEANING,
        Shape(n=5000, m=5000, d=784, c=10, steps=100),
        tiny=Shape(n=50, m=20, d=7, c=10, steps=6),
        cuda=Shape(n=20000, m=20000, d=784, c=10, steps=1000),
        contenders=COMPILED,
        target=">= 3 x JAX, >= 65 % of the sgemm rate",
        cuda_target="<= 30 ms (floor 18.7 ms)",
    ),
    Case(
        "effect-of-t",
        EFFECT_OF_T,
        Shape(n=300, m=300, d=256, c=100, steps=256),
        tiny=Shape(n=20, m=10, d=16, c=7, steps=9),
        contenders=SQUARED,
        target=">= 4 x, spectral >= 20 x",
        cuda_target="<= 0.6 ms (floor 0.15 ms), spectral <= 0.25 ms",
    ),
    Case(
        "ridge-tall",
        RIDGE_TALL,
        Shape(n=20000, m=2000, d=128, c=10, steps=200),
        tiny=Shape(n=60, m=20, d=6, c=3, steps=7),
        contenders=TALL,
    ),
    Case(
        "sinusoid",
        SINUSOID,
        Shape(tasks=25, n=10, m=10, d=1, c=1, steps=5),
        tiny=Shape(tasks=3, n=4, m=5, d=1, c=1, steps=3),
        contenders=NETWORKS,
        target=">= 10 x eager",
    ),
    Case(
        "sinusoid-long",
        SINUSOID,
        Shape(tasks=25, n=10, m=10, d=1, c=1, steps=50),
        tiny=Shape(tasks=2, n=4, m=5, d=1, c=1, steps=7),
        contenders=NETWORKS,
        target=">= 10 x eager",
    ),
    Case(
        "one-task-loop",
        FEW_SHOT,
        Shape(tasks=256, n=5, m=75, d=64, c=5, steps=5),
        tiny=Shape(tasks=2, n=5, m=7, d=6, c=5, steps=3),
        contenders=ONE_BY_ONE,
        target=">= 100 x",
    ),
)

MEMORY = "memory"  # the case whose bytes are measured, not its time: benchmarks/memory.py
