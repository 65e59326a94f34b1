"""PyTorch eager in a CUDA graph: one forward and reverse pass captured once, then replayed by one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Build, Run, eager
from benchmarks.workloads import Shape, Workload

WARM_UPS = 3  # before a capture: libraries allocate their workspaces and autograd its streams


def graphed(build: Build) -> Build:
    """`build`, its run captured: what it returns is overwritten by the next replay."""

    def build_graph(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
        run = build(workload, shape, inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()

        def replay() -> Mapping[str, Any]:
            graph.replay()
            return results

        return replay

    return build_graph


build = graphed(eager.build)
build_closed_form = graphed(eager.build_closed_form)
