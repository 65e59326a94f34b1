"""PyTorch `torch.func`: one task written plainly with `grad`, and `vmap` over the tasks; eager as well."""

from __future__ import annotations

from torch import Tensor
from torch.func import grad, vmap

from benchmarks.peers import Run
from benchmarks.peers.eager import differentiate, network, penalty, total_loss
from benchmarks.workloads import Bilevel, Shape, Workload


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    return differentiate(value, workload, shape, inputs)


def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
    """The outer objective: vmap of (T steps of `grad(inner)`, then the validation loss), averaged over tasks."""

    def inner(params: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        return total_loss(network(x, params), y, loss, p.weights) + penalty(params[0], p.l2)

    def task(x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> Tensor:
        params = p.w0 or (x.new_zeros(shape.d, shape.c), x.new_zeros(shape.c))
        for _ in range(shape.steps):
            grads = grad(inner)(params, x, y)
            params = tuple(a - p.lr * g for a, g in zip(params, grads, strict=True))
        return total_loss(network(x_val, params), y_val, loss)

    batched = vmap(task) if shape.tasks else task
    return batched(p.x, p.y, p.x_val, p.y_val).mean()
