"""PyTorch eager: the unroll that everybody writes, in its strongest form, with no library on top.

`build` batches the tasks by hand and differentiates the inner loss with `create_graph=True`. `build_closed_form`
writes the inner gradient out, as an expert would for a linear model, and needs only one level of autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from benchmarks.peers import Run
from benchmarks.workloads import Bilevel, Shape, Workload

Value = Callable[[Bilevel, str, Shape], Tensor]


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    return differentiate(value, workload, shape, inputs)


def build_closed_form(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    return differentiate(value_closed_form, workload, shape, inputs)


def build_one_by_one(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """Every task by itself, one after the other."""
    one = replace(shape, tasks=0)

    def task(p: Bilevel) -> Tensor:
        return value(p, workload.loss, one)

    return loop_over_tasks(task, workload, shape, inputs)


def differentiate(value: Value, workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """One forward and one reverse pass of `value` by ordinary autograd, fresh leaves each time."""

    def run() -> dict[str, Tensor]:
        arrays = with_leaves(workload, inputs)
        outer = value(workload.problem(arrays), workload.loss, shape)
        leaves = [arrays[name] for name in workload.leaves]
        grads = torch.autograd.grad(outer, leaves)
        return {"value": outer.detach(), **dict(zip(workload.leaves, grads, strict=True))}

    return run


def loop_over_tasks(
    task: Callable[[Bilevel], Tensor], workload: Workload, shape: Shape, inputs: dict[str, Tensor]
) -> Run:
    """The mean over tasks of `task`, each with its own forward and reverse pass, as one-task libraries are used.

    Tasks are accumulated as in a meta-training loop: features get their own rows, shared settings add up.
    """

    def run() -> dict[str, Tensor]:
        values, rows = [], []
        for j in range(shape.tasks):
            arrays = {name: a[j] if a.ndim else a for name, a in inputs.items()}
            arrays = with_leaves(workload, arrays)
            outer = task(workload.problem(arrays)) / shape.tasks
            rows.append(torch.autograd.grad(outer, [arrays[name] for name in workload.leaves]))
            values.append(outer.detach())
        stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
        grads = {
            name: grad if inputs[name].ndim else grad.sum(0)
            for name, grad in zip(workload.leaves, stacked, strict=True)
        }
        return {"value": torch.stack(values).sum(), **grads}

    return run


def with_leaves(workload: Workload, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: inputs[name].detach().requires_grad_() for name in workload.leaves}
    return {**inputs, **leaves}


def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
    """The outer objective after T steps, each of them `autograd.grad(..., create_graph=True)`."""
    if p.w0:
        return value_network(p, loss, shape)
    w, b = zeros(p, shape, requires_grad=True)
    for _ in range(shape.steps):
        w, b = step(w, b, p, loss)
    return outer_objective(p, w, b, loss, shape)


def value_network(p: Bilevel, loss: str, shape: Shape) -> Tensor:
    """The same for a network of relu layers, from p.w0, every task with weights of its own."""
    w = [x.expand(*p.x.shape[:-2], *x.shape) for x in p.w0]
    for _ in range(shape.steps):
        grads = torch.autograd.grad(total_loss(network(p.x, w), p.y, loss), w, create_graph=True)
        w = [x - p.lr * g for x, g in zip(w, grads, strict=True)]
    return total_loss(network(p.x_val, w), p.y_val, loss) / max(shape.tasks, 1)


def network(x: Tensor, w: Sequence[Tensor]) -> Tensor:
    """Affine maps with relu between them; w is W_1, b_1, ..., each with the task dimensions of x."""
    for i in range(0, len(w), 2):
        x = affine(x.relu() if i else x, w[i], w[i + 1].unsqueeze(-2))
    return x


def step(w: Tensor, b: Tensor, p: Bilevel, loss: str) -> tuple[Tensor, Tensor]:
    inner = total_loss(affine(p.x, w, b), p.y, loss, p.weights) + penalty(w, p.l2)
    gw, gb = torch.autograd.grad(inner, (w, b), create_graph=True)
    return w - p.lr * gw, b - p.lr * gb


def value_closed_form(p: Bilevel, loss: str, shape: Shape) -> Tensor:
    """The same trajectory with the inner gradient written out: G = X^T R + l2 W."""
    w, b = zeros(p, shape)
    written_out = write_out(p, loss, shape)
    for _ in range(shape.steps):
        w, b = step_closed_form(w, b, written_out, loss)
    return outer_objective(p, w, b, loss, shape)


def write_out(p: Bilevel, loss: str, shape: Shape) -> Bilevel:
    """What `step_closed_form` wants: targets [*B, n, c] in `y`, the factor of every residual in `weights`."""
    targets = p.y if loss == "squared" else one_hot(p.y, shape.c).to(p.x.dtype)
    scale = 1 / shape.n if p.weights is None else p.weights.unsqueeze(-1) / shape.n
    return p._replace(y=targets, weights=scale)


def step_closed_form(w: Tensor, b: Tensor, p: Bilevel, loss: str) -> tuple[Tensor, Tensor]:
    logits = affine(p.x, w, b)
    residual = p.weights * ((logits if loss == "squared" else logits.softmax(-1)) - p.y)
    gw = p.x.mT @ residual if is_zero(p.l2) else p.x.mT @ residual + p.l2 * w
    return w - p.lr * gw, b - p.lr * residual.sum(-2, keepdim=True)


def outer_objective(p: Bilevel, w: Tensor, b: Tensor, loss: str, shape: Shape) -> Tensor:
    return total_loss(affine(p.x_val, w, b), p.y_val, loss) / max(shape.tasks, 1)


def zeros(p: Bilevel, shape: Shape, requires_grad: bool = False) -> tuple[Tensor, Tensor]:
    """Weights [*B, d, c] and bias [*B, 1, c]."""
    tasks = p.x.shape[:-2]
    w = p.x.new_zeros(*tasks, shape.d, shape.c).requires_grad_(requires_grad)
    return w, p.x.new_zeros(*tasks, 1, shape.c).requires_grad_(requires_grad)


def affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.baddbmm(b, x, w) if x.ndim == 3 else torch.addmm(b, x, w)


def total_loss(logits: Tensor, y: Tensor, loss: str, weights: Tensor | None = None) -> Tensor:
    """Mean loss over the rows of a task, summed over tasks: ()."""
    n = logits.shape[-2]
    if loss == "squared":
        if weights is None:
            return mse_loss(logits, y, reduction="sum") / (2 * n)
        return (logits - y).square().sum(-1).flatten() @ weights.flatten() / (2 * n)
    rows, classes = logits.flatten(0, -2), y.flatten()
    if weights is None:
        return cross_entropy(rows, classes, reduction="sum") / n
    return cross_entropy(rows, classes, reduction="none") @ weights.flatten() / n


def penalty(w: Tensor, l2: Tensor | float) -> Tensor | float:
    """l2/2 |W|^2, nothing at all where there is no regulariser."""
    return 0.0 if is_zero(l2) else 0.5 * l2 * w.square().sum()


def is_zero(l2: Tensor | float) -> bool:
    return isinstance(l2, float) and l2 == 0.0
