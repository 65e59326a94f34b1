"""The definition: training in a plain loop that autograd differentiates. Slow, obvious, only torch.

Every engine is tested against it. It shares no code with them on purpose: the rules below are the textbooks' formulas,
written again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Buffers = Mapping[str, Any]
Rule = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""(w, g, buffers, t, **settings) -> w and buffers after step t = 0, 1, ..; one parameter tensor. Buffers have the names
of torch.optim; those that are missing are zero."""


def unroll(
    inner: Callable[..., Tensor],
    w0: Any,
    hparams: Any = None,
    *,
    steps: int,
    rule: str = "sgd",
    buffers: Mapping[str, Any] | None = None,
    start: int = 0,
    truncate: int | None = None,
    batches: Sequence[Any] | None = None,
    first_order: bool = False,
    **settings: Any,
) -> tuple[Any, dict[str, Any]]:
    """The final parameters, and the rule's buffers by name, each like w0, after `steps` steps, as graph nodes.

    Args:
        inner: a fused problem, or a loss(w) or loss(w, hparams); the losses of tasks are summed.
        w0: a tensor or pytree of tensors.
        hparams: given to `inner` unless None.
        rule: a key of `RULES`.
        buffers: where they start, by name, each like w0; None: zeros.
        start: how many steps were made before.
        truncate: cut the graph before the last `truncate` steps.
        batches: one a step, the last argument of `inner`.
        first_order: take the inner gradients as constants.
        settings: those of the rule; each a number, a flag, a tensor (), [steps], [*B, 1] or [*B, steps]; or, where
            w0 is a container, a container like it of tensors that broadcast to the parameters.

    Memory and time grow with `steps`: every step keeps its whole graph.
    """
    w, spec = pytree.tree_flatten(w0)
    leaves = {name: pytree.tree_leaves(buffer) for name, buffer in (buffers or {}).items()}
    kept = [{name: buffer[i] for name, buffer in leaves.items()} for i in range(len(w))]
    for t in range(steps):
        if truncate is not None and t == steps - truncate > 0:
            w, kept = [x.detach() for x in w], [{k: b.detach() for k, b in one.items()} for one in kept]
        w = [x if x.requires_grad else x.detach().requires_grad_() for x in w]
        parameters = pytree.tree_unflatten(w, spec)
        arguments = [parameters, *([] if hparams is None else [hparams])]
        loss = inner(*arguments, *([] if batches is None else [batches[t]]))
        gradient = torch.autograd.grad(loss.sum(), w, create_graph=True, materialize_grads=True)
        for i, g in enumerate(gradient):
            g = g.detach() if first_order else g
            now = {name: _at(value, t, i, w[i]) for name, value in settings.items()}
            w[i], kept[i] = RULES[rule](w[i], g, kept[i], start + t, **now)
    found = {name: pytree.tree_unflatten([one[name] for one in kept], spec) for name in kept[0]}
    return pytree.tree_unflatten(w, spec), found


def sgd(
    w: Tensor,
    g: Tensor,
    buffers: Buffers,
    t: int,
    *,
    lr: Any,
    momentum: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """g = dL/dw + weight_decay w;   v = momentum v + g;   w = w - lr (g + momentum v if nesterov else v)."""
    g = g + weight_decay * w
    v = momentum * buffers.get("momentum_buffer", 0.0) + g
    return w - lr * (g + momentum * v if nesterov else v), {"momentum_buffer": v}


def adam(
    w: Tensor,
    g: Tensor,
    buffers: Buffers,
    t: int,
    *,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any = 0.0,
    decoupled_decay: Any = 0.0,
    amsgrad: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Kingma & Ba 2015, algorithm 1; amsgrad takes the largest biased second moment, as torch.optim does."""
    g = g + weight_decay * w
    m = beta1 * buffers.get("exp_avg", 0.0) + (1 - beta1) * g
    v = beta2 * buffers.get("exp_avg_sq", 0.0) + (1 - beta2) * g**2
    before = buffers.get("max_exp_avg_sq", torch.zeros_like(v))
    largest = torch.where(before > v, before, v) if amsgrad else v
    m_hat, v_hat = m / (1 - beta1 ** (t + 1)), largest / (1 - beta2 ** (t + 1))
    w = w - lr * decoupled_decay * w - lr * m_hat / (v_hat**0.5 + eps)
    return w, {"exp_avg": m, "exp_avg_sq": v, "max_exp_avg_sq": largest}


def adamw(
    w: Tensor, g: Tensor, buffers: Buffers, t: int, *, weight_decay: Any = 0.0, **settings: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loshchilov & Hutter 2019, algorithm 2."""
    return adam(w, g, buffers, t, decoupled_decay=weight_decay, **settings)


def rmsprop(
    w: Tensor,
    g: Tensor,
    buffers: Buffers,
    t: int,
    *,
    lr: Any,
    alpha: Any,
    eps: Any,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tieleman & Hinton 2012; Graves 2013, equations 38 to 41, for the centered one, with eps outside the root."""
    g = g + weight_decay * w
    square = alpha * buffers.get("square_avg", 0.0) + (1 - alpha) * g**2
    mean = alpha * buffers.get("grad_avg", 0.0) + (1 - alpha) * g
    variance = square - mean**2 if centered else square
    velocity = momentum * buffers.get("momentum_buffer", 0.0) + g / (variance**0.5 + eps)
    return w - lr * velocity, {"square_avg": square, "grad_avg": mean, "momentum_buffer": velocity}


def adagrad(
    w: Tensor,
    g: Tensor,
    buffers: Buffers,
    t: int,
    *,
    lr: Any,
    eps: Any,
    lr_decay: Any = 0.0,
    weight_decay: Any = 0.0,
    initial_accumulator_value: Any = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Duchi, Hazan & Singer 2011, the diagonal form."""
    g = g + weight_decay * w
    total = buffers.get("sum", initial_accumulator_value) + g**2
    return w - lr / (1 + t * lr_decay) * g / (total**0.5 + eps), {"sum": total}


RULES: dict[str, Rule] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
}
"""The rule of every optimizer, by its name."""


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
