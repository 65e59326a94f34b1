"""Libraries that adapt one module on one task at a time: `higher` and `torchopt`, used as their tutorials do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Run
from benchmarks.peers.eager import loop_over_tasks, total_loss
from benchmarks.workloads import Bilevel, Shape, Workload


def build_higher(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    import higher

    def task(p: Bilevel) -> Tensor:
        net = _zero_linear(shape, p.x)
        sgd = torch.optim.SGD(net.parameters(), lr=1.0)
        with higher.innerloop_ctx(net, sgd, override={"lr": [p.lr]}) as (model, optimizer):
            for _ in range(shape.steps):
                optimizer.step(total_loss(model(p.x), p.y, workload.loss))
            return total_loss(model(p.x_val), p.y_val, workload.loss)

    return loop_over_tasks(task, workload, shape, inputs)


def build_torchopt(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    import torchopt

    def task(p: Bilevel) -> Tensor:
        net = _zero_linear(shape, p.x)
        optimizer = torchopt.MetaSGD(
            net, lr=lambda _: p.lr
        )  # a schedule: the way to a differentiable step size
        for _ in range(shape.steps):
            optimizer.step(total_loss(net(p.x), p.y, workload.loss))
        return total_loss(net(p.x_val), p.y_val, workload.loss)

    return loop_over_tasks(task, workload, shape, inputs)


def _zero_linear(shape: Shape, x: Tensor) -> nn.Linear:
    net = nn.Linear(shape.d, shape.c, device=x.device, dtype=x.dtype)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net
