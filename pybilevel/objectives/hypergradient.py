"""Value and hypergradient of a bilevel problem in one call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.objectives.hyperopt import check_levels, ho_objective
from pybilevel.objectives.verification import Verification, Verifier
from pybilevel.optimizers import Optimizer
from pybilevel.problems import Problem


class _Pair(NamedTuple):
    value: Tensor
    grads: Any


class Hypergradient(_Pair):
    """What `hypergradient` returns, a pair: the outer value (detached), and the gradients, shaped like `wrt`.

    Attributes:
        verification: what the check found, with verify=True; else None.
    """

    verification: Verification | None = None


def hypergradient(
    inner: Any,
    outer: Problem | Callable[[Any], Tensor],
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
        wrt: what to differentiate in, a pytree whose floating tensors all require gradients (before inner, outer and
            optimizer are built from them). None: `hparams`, or for a fused problem those of its own tensors (x, y,
            weights, l2, by name) that require gradients; what only outer, w0 or optimizer holds must be in wrt.
        verify: compare with an independent derivative along one random direction of all of wrt: a tangent that goes
            with the iterates of the generic engine, its Hessian products by forward mode over the inner gradient, or
            by central differences of it where an operation has no forward derivative; and the gradient of outer with
            central differences. The differences are in `.verification`. For exact methods. Catches wrong second
            derivatives (of a custom autograd.Function), a wrong backward in outer, wrong kernels and schedules. The
            limits are 4 eps^(1/2), where central differences come in 4 eps^(1/3): 6e-8 and 2.4e-5 in float64, 1.4e-3
            and 2e-2 in float32; long or chaotic training may exceed them in float32 by rounding.

    Returns:
        (value, grads), constants both, which cannot be differentiated: value as `pb.ho_objective` returns it; grads
        like `wrt`, of every path from a tensor to the value, by w_T or by outer itself; zeros where there is none; None
        for leaves of wrt that are not floating tensors.

    Cost: as `pb.ho_objective`, forward and backward; verify adds about 4 gradients of the inner loss a step and three
    evaluations of outer, whatever the number of inputs.

    Raises:
        as `pb.ho_objective`; ValueError where there is nothing to differentiate in, or a floating tensor of wrt (or
        hparams) does not require a gradient, or verify=True with a method that is not exact or a state with a graph;
        VerificationError where the hypergradient is wrong.

    Source: Franceschi et al., ICML 2018, section 2.
    """
    if wrt is None:
        name, wrt = _default(inner, hparams)
    else:
        name = "wrt"
    leaves, spec = pytree.tree_flatten(wrt)
    wanted = [leaf for leaf in leaves if _is_floating(leaf)]
    _check_wanted(name, wrt)
    options = {"steps": steps, "optimizer": optimizer, **options}
    with torch.enable_grad():
        if verify:
            check_levels(inner, outer, hparams, options)
        verifier = Verifier(inner, outer, w0, hparams, options) if verify else None
        value = ho_objective(inner, verifier.outer if verifier else outer, w0, hparams, **options)
        found = _gradients(value.sum(), wanted, retain=verify)
    rest = iter(found)
    grads = [next(rest) if _is_floating(leaf) else None for leaf in leaves]
    result = Hypergradient(value.detach(), pytree.tree_unflatten(grads, spec))
    if verifier is not None:
        result.verification = verifier.compare(wanted, found)
    return result


def _default(inner: Any, hparams: Any) -> tuple[str, Any]:
    """What to differentiate in where wrt is None, after the name of the argument that it comes from."""
    if hparams is not None:
        return "hparams", hparams
    if not isinstance(inner, Problem):
        raise ValueError(
            "wrt is None and so is hparams: pass the tensors to differentiate in as wrt, such as wrt=(w0, lr)"
        )
    return "inner", {name: tensor for name, tensor in inner.tensors().items() if tensor.requires_grad}


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _check_wanted(name: str, tree: Any) -> None:
    wanted = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(tree)[0] if _is_floating(leaf)]
    if not wanted:
        raise ValueError(
            f"there is nothing to differentiate in: {name} holds no floating tensor that requires a gradient. Call "
            "requires_grad_() on a tensor, or pass wrt, a tensor or a container of tensors; w0 and optimizer settings "
            "count only there: wrt=(w0, lr)"
        )
    for path, leaf in wanted:
        if not leaf.requires_grad:
            raise ValueError(
                f"{name}{pytree.keystr(path)}, of shape {list(leaf.shape)}, does not require a gradient: call "
                "requires_grad_() on it before inner, outer and optimizer are built from it, or pass as wrt only "
                "the tensors to differentiate in"
            )


def _gradients(value: Tensor, wanted: list[Tensor], retain: bool) -> Sequence[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in wanted]
    return torch.autograd.grad(value, wanted, retain_graph=retain, materialize_grads=True, allow_unused=True)
