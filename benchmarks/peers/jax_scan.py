"""JAX: `jit(value_and_grad(vmap(scan(grad))))`, compiled once in the first run; steps stored or recomputed."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from benchmarks.peers import Run
from benchmarks.workloads import Bilevel, Shape, Workload

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with the other contenders


def build(workload: Workload, shape: Shape, inputs: dict[str, Tensor], checkpoint: bool = False) -> Run:
    import jax
    import jax.numpy as jnp

    device = jax.devices("gpu" if inputs["lr"].is_cuda else "cpu")[0]
    arrays = {name: jax.device_put(jnp.asarray(a.cpu().numpy()), device) for name, a in inputs.items()}

    def outer(leaves: dict[str, Any], constants: dict[str, Any]) -> Any:
        return _value(workload.problem({**constants, **leaves}), workload.loss, shape, checkpoint)

    compiled = jax.jit(jax.value_and_grad(outer))
    leaves = {name: arrays.pop(name) for name in workload.leaves}

    def run() -> dict[str, Any]:
        value, grads = jax.block_until_ready(compiled(leaves, arrays))
        return {"value": value, **grads}

    return run


def build_checkpoint(workload: Workload, shape: Shape, inputs: dict[str, Tensor]) -> Run:
    """`jax.checkpoint` on the step: the scan stores w only, and the reverse pass recomputes the rest of a step."""
    return build(workload, shape, inputs, checkpoint=True)


def _value(p: Bilevel, loss: str, shape: Shape, checkpoint: bool) -> Any:
    """The mean over tasks of the validation loss after T steps under `lax.scan`."""
    import jax
    import jax.numpy as jnp

    def mean_loss(logits: Any, y: Any, weights: Any = None) -> Any:
        if loss == "squared":
            rows = 0.5 * jnp.square(logits - y).sum(-1)
        else:
            rows = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)[:, 0]
        return (rows if weights is None else weights * rows).mean()

    def network(x: Any, params: tuple[Any, ...]) -> Any:
        for i in range(0, len(params), 2):
            x = (jax.nn.relu(x) if i else x) @ params[i] + params[i + 1]
        return x

    def task(x: Any, y: Any, x_val: Any, y_val: Any) -> Any:
        def inner(params: tuple[Any, ...]) -> Any:
            return mean_loss(network(x, params), y, p.weights) + 0.5 * p.l2 * jnp.square(params[0]).sum()

        def step(params: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
            grads = jax.grad(inner)(params)
            return jax.tree.map(lambda a, g: a - p.lr * g, params, grads), None

        start = p.w0 or (jnp.zeros((shape.d, shape.c), x.dtype), jnp.zeros(shape.c, x.dtype))
        params, _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, start, length=shape.steps)
        return mean_loss(network(x_val, params), y_val)

    batched = jax.vmap(task) if shape.tasks else task
    return batched(p.x, p.y, p.x_val, p.y_val).mean()
