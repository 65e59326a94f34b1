"""The gradient of a loss differentiated in forward mode, `jvp(grad(L))`: by dual tensors."""

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def forward_over_reverse(
    loss: Callable[[], Tensor], targets: Sequence[Tensor], backward_error: object
) -> list[Tensor]:
    """The tangents of the gradient of `loss`, a function of dual tensors (see `dual`), in `targets`.

    Raises:
        RuntimeError: an operation has no forward mode; `backward_error` says why a second backward was out of question.
    """
    try:
        with forward_ad.dual_level(), torch.enable_grad():
            value = tied(loss(), targets)
            found = torch.autograd.grad(value, targets, materialize_grads=True)
            tangents = [_tangent(g) for g in found]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(
            "the gradient of the inner loss cannot be differentiated: neither by a second backward "
            f"({backward_error}) nor in forward mode ({error}). Replace the operation (for attention: the math "
            "backend of torch.nn.attention.sdpa_kernel; for recurrent nets: cudnn.flags(enabled=False))."
        ) from error
    return [
        torch.zeros_like(x) if tangent is None else tangent.detach().clone()
        for x, tangent in zip(targets, tangents, strict=True)
    ]


def tied(value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """`value`, as a node of a graph even where it is a constant."""
    return value if value.requires_grad else value + 0 * leaves[0].sum()


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """`value` with a tangent, within the loss of `forward_over_reverse`."""
    return forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call, no-any-return]


def _tangent(value: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call, no-any-return]
