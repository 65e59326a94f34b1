"""Value and hypergradient of a bilevel problem in one call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.objectives.hyperopt import ho_objective
from pybilevel.optimizers import Optimizer
from pybilevel.problems import LinearProblem


class Hypergradient(NamedTuple):
    """What `hypergradient` returns: the outer value (detached), and the gradients, shaped like `wrt`."""

    value: Tensor
    grads: Any


def hypergradient(
    inner: Any,
    outer: LinearProblem | Callable[[Any], Tensor],
    w0: Any = None,
    hparams: Any = None,
    *,
    steps: int,
    optimizer: Optimizer,
    wrt: Any = None,
    verify: bool = False,
    **options: Any,
) -> Hypergradient:
    """The value and the gradient of `ho_objective` (summed over tasks), without touching any `.grad`.

        E(w_T(lambda)),   dE/dlambda

    Args:
        inner, outer, w0, hparams, steps, optimizer, options: as in `pb.ho_objective`.
        wrt: a pytree of tensors that require gradients, to differentiate in. None: `hparams` (which need not require
            them), or for a fused problem all its tensors that do, by name.
        verify: compare two methods. Not in this version.

    Returns:
        (value, grads): grads like `wrt`; zeros where the value does not depend on a tensor, never None.

    Cost: as `pb.ho_objective`, forward and backward.

    Raises:
        as `pb.ho_objective`; ValueError where there is nothing to differentiate in.

    Source: Franceschi et al., ICML 2018, section 2.
    """
    if verify:
        raise NotImplementedError(
            "verify=True compares two methods, and this version has one: leave it False"
        )
    if wrt is None and hparams is not None:
        hparams = wrt = pytree.tree_map(_own_leaf, hparams)
    elif wrt is None:
        wrt = _problem_tensors(inner)
    leaves, spec = pytree.tree_flatten(wrt)
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    _check_wanted(wanted)
    with torch.enable_grad():
        value = ho_objective(inner, outer, w0, hparams, steps=steps, optimizer=optimizer, **options)
        found = iter(torch.autograd.grad(value.sum(), wanted, materialize_grads=True, allow_unused=True))
    floating = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
    grads = [next(found) if is_wanted else None for is_wanted in floating]
    return Hypergradient(value.detach(), pytree.tree_unflatten(grads, spec))


def _own_leaf(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        return value
    return value.detach().requires_grad_()


def _problem_tensors(inner: Any) -> dict[str, Tensor]:
    if not isinstance(inner, LinearProblem):
        raise ValueError("wrt is None and so is hparams: pass the tensors to differentiate in as wrt")
    return {name: tensor for name, tensor in inner.tensors().items() if tensor.requires_grad}


def _check_wanted(wanted: list[Tensor]) -> None:
    if not wanted:
        raise ValueError(
            "there is nothing to differentiate in: call requires_grad_() on a tensor, or pass wrt"
        )
    for i, tensor in enumerate(wanted):
        if not tensor.requires_grad:
            raise ValueError(
                f"leaf {i} of wrt, of shape {list(tensor.shape)}, does not require a gradient: call requires_grad_() "
                "on it before inner and optimizer are built from it"
            )
