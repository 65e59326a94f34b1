"""pybilevel through its public face: the meta-learning and hyperparameter objectives, and `unroll` by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.peers import Build, Run
from benchmarks.peers.eager import differentiate, loop_over_tasks, total_loss
from benchmarks.sinusoid import sizes
from benchmarks.workloads import Bilevel, Shape, Workload


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor], **options: Any) -> Run:
    """`ml_objective` where there are tasks, `ho_objective` where there are none; `options` are theirs."""
    import pybilevel as pb

    def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
        settings: dict[str, Any] = {
            "steps": shape.steps,
            "optimizer": pb.SGD(lr=p.lr),
            "backend": "fused",
            **options,
        }
        if p.w0:
            return _networks(p, shape, lambda inner, outer: pb.ho_objective(inner, outer, p.w0, **settings))
        if shape.tasks:
            per_task, _ = pb.ml_objective(p.x, p.y, p.x_val, p.y_val, num_classes=shape.c, **settings)
            return per_task.mean()
        inner = _problem(p.x, p.y, loss, shape, weights=p.weights, l2=p.l2)
        return pb.ho_objective(inner, _problem(p.x_val, p.y_val, loss, shape), **settings)

    return differentiate(value, workload, shape, inputs)


def with_memory(request: Callable[[Any], Any]) -> Build:
    """`build` with `memory=request(pybilevel)`, which is imported only when the contender runs."""

    def build_within(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
        import pybilevel as pb

        return build(workload, shape, inputs, memory=request(pb))

    return build_within


def build_spectral(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """Squared loss without stepping: T steps as one function of eigenvalues."""
    import pybilevel as pb

    return build(workload, shape, inputs, method=pb.Spectral(), backend="auto")


def build_unroll(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """`unroll`, then the outer objective in plain PyTorch."""
    import pybilevel as pb

    def value(p: Bilevel, loss: str, shape: Shape) -> Tensor:
        if p.w0:
            settings = {"steps": shape.steps, "optimizer": pb.SGD(lr=p.lr), "backend": "fused"}
            return _networks(p, shape, lambda inner, outer: outer(pb.unroll(inner, p.w0, **settings)))
        inner = _problem(p.x, p.y, loss, shape, weights=p.weights, l2=p.l2)
        w = pb.unroll(inner, steps=shape.steps, optimizer=pb.SGD(lr=p.lr), backend="fused")
        outer = total_loss(inner.logits(w, p.x_val), p.y_val, loss)
        return outer / max(shape.tasks, 1)

    return differentiate(value, workload, shape, inputs)


def build_one_by_one(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """`ml_objective` on one task at a time: what a call costs."""
    import pybilevel as pb

    def task(p: Bilevel) -> Tensor:
        per_task, _ = pb.ml_objective(
            p.x[None],
            p.y[None],
            p.x_val[None],
            p.y_val[None],
            steps=shape.steps,
            optimizer=pb.SGD(lr=p.lr),
            num_classes=shape.c,
            backend="fused",
        )
        return per_task.sum()

    return loop_over_tasks(task, workload, shape, inputs)


def _problem(x: Tensor, y: Tensor, loss: str, shape: Shape, **terms: Any) -> Any:
    import pybilevel as pb

    if loss == "squared":
        return pb.LeastSquares(x, y, **terms)
    return pb.SoftmaxRegression(x, y, num_classes=shape.c, **terms)


def _networks(p: Bilevel, shape: Shape, value: Callable[[Any, Any], Tensor]) -> Tensor:
    """The mean over tasks of value(inner, outer), both a network of relu layers."""
    import pybilevel as pb

    widths = sizes(shape)
    inner, outer = pb.MLP(p.x, p.y, sizes=widths), pb.MLP(p.x_val, p.y_val, sizes=widths)
    return value(inner, outer).mean()
