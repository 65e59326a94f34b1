"""The definition: gradient descent in a plain loop that autograd differentiates. Slow, obvious, only torch.

Every engine is tested against it. It shares no code with them on purpose.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def unroll(
    inner: Callable[..., Tensor],
    w0: Any,
    hparams: Any = None,
    *,
    steps: int,
    lr: Any,
    momentum: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    velocity: Any = None,
    truncate: int | None = None,
) -> tuple[Any, Any]:
    """The final parameters and velocity after `steps` steps of gradient descent with momentum, as graph nodes.

        g = dL/dw + weight_decay w;   v = momentum v + g;   w = w - lr (g + momentum v if nesterov else v)

    Args:
        inner: a fused problem, or a loss(w) or loss(w, hparams); the losses of tasks are summed.
        w0: a tensor or pytree of tensors.
        hparams: given to `inner` unless None.
        lr, momentum, weight_decay: a number, a tensor (), [steps], [*B, 1] or [*B, steps]; or, where w0 is a
            container, a container like it of tensors that broadcast to the parameters.
        velocity: like w0; None: zeros.
        truncate: cut the graph before the last `truncate` steps.

    Memory and time grow with `steps`: every step keeps its whole graph.
    """
    w, spec = pytree.tree_flatten(w0)
    v = [torch.zeros_like(x) for x in w] if velocity is None else pytree.tree_leaves(velocity)
    for t in range(steps):
        if truncate is not None and t == steps - truncate > 0:
            w, v = [x.detach() for x in w], [x.detach() for x in v]
        w = [x if x.requires_grad else x.detach().requires_grad_() for x in w]
        parameters = pytree.tree_unflatten(w, spec)
        loss = inner(parameters) if hparams is None else inner(parameters, hparams)
        gradient = torch.autograd.grad(loss.sum(), w, create_graph=True, materialize_grads=True)
        for i, g in enumerate(gradient):
            eta, mu, decay = (_at(s, t, i, w[i]) for s in (lr, momentum, weight_decay))
            g = g + decay * w[i]
            v[i] = mu * v[i] + g
            w[i] = w[i] - eta * (g + mu * v[i] if nesterov else v[i])
    return pytree.tree_unflatten(w, spec), pytree.tree_unflatten(v, spec)


def _at(setting: Any, t: int, i: int, w: Tensor) -> Any:
    """The value of a setting at step t for the parameter w, the i-th leaf."""
    if isinstance(setting, (list, tuple, dict)):
        return pytree.tree_leaves(setting)[i]
    if not isinstance(setting, Tensor) or setting.ndim == 0:
        return setting
    if setting.ndim == 1:
        return setting[t]
    per_task = setting[..., 0] if setting.shape[-1] == 1 else setting[..., t]
    return per_task.reshape(*per_task.shape, *[1] * (w.ndim - per_task.ndim))
