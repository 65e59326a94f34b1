"""PyTorch `torch.func`: one task written plainly with `grad`, and `vmap` over the tasks; eager as well."""

from __future__ import annotations

from torch import Tensor
from torch.func import grad, vmap

from benchmarks.peers import Run
from benchmarks.peers.eager import differentiate, penalty, total_loss
from benchmarks.workloads import Bilevel, Shape, Workload


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    return differentiate(value, workload, shape, inputs)


def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
    """The outer objective: vmap of (T steps of `grad(inner)`, then the validation loss), averaged over tasks."""

    def inner(params: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
        w, b = params
        return total_loss(x @ w + b, y, loss, p.weights) + penalty(w, p.l2)

    def task(x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> Tensor:
        w = x.new_zeros(shape.d, shape.c)
        b = x.new_zeros(1, shape.c)
        for _ in range(shape.steps):
            gw, gb = grad(inner)((w, b), x, y)
            w, b = w - p.lr * gw, b - p.lr * gb
        return total_loss(x_val @ w + b, y_val, loss)

    batched = vmap(task) if shape.tasks else task
    return batched(p.x, p.y, p.x_val, p.y_val).mean()
