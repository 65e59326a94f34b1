"""Tasks of a callable: which axes of its arguments they are on, and the loss mapped over them by torch.vmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.batches import Batches
from pybilevel.engine.randomness import Streams, default_generators

Dims = list[int | None]


class Tasks(NamedTuple):
    """B tasks: w has them on axis 0 of every leaf, batches on the axis 0 of every tensor.

    Attributes:
        size: B.
        dims: the axis of each leaf of hparams, None: shared by all tasks.
        randomness: what torch.vmap does about random numbers.
    """

    size: int
    dims: tuple[int | None, ...]
    randomness: str

    def map(
        self,
        loss: Callable[..., Any],
        w: Sequence[Tensor],
        hparams: Sequence[Any],
        batch: Any,
        buffers: Sequence[Tensor],
    ) -> Any:
        """`loss(w, hparams, batch, buffers)` for every task; its results, with the tasks on axis 0.

        Raises:
            RuntimeError: an operation of the loss has no rule for vmap; the text names it and the remedy.
        """
        leaves, spec = pytree.tree_flatten(batch)
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        mapped = [i for i, dim in enumerate(self.dims) if dim is not None]

        def one(w: list[Tensor], some: list[Any], parts: list[Tensor], buffers: list[Tensor]) -> Any:
            return loss(
                w,
                _replaced(hparams, mapped, some),
                pytree.tree_unflatten(_replaced(leaves, places, parts), spec),
                buffers,
            )

        over = torch.vmap(one, (0, [self.dims[i] for i in mapped], 0, 0), randomness=self.randomness)
        try:
            return over(list(w), [hparams[i] for i in mapped], [leaves[i] for i in places], list(buffers))
        except RuntimeError as error:
            if "Batching rule not implemented" not in str(error):
                raise
            raise RuntimeError(
                f"inner does not run under torch.vmap, which in_dims needs ({error}): replace the operation (for "
                "torch.nn.GRU, LSTM, RNN and their cells: write the formulas of the cell, in a loop over time), or "
                "call unroll for each task, without in_dims"
            ) from error


def check_batch(batch: Any, size: int, t: int) -> None:
    """Raise ValueError unless every tensor of the batch of step t has `size` tasks on its axis 0."""
    for i, leaf in enumerate(pytree.tree_leaves(batch)):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != size):
            raise ValueError(
                f"leaf {i} of the batch of step {t} has shape {list(leaf.shape)} but in_dims gives {size} tasks: with "
                "in_dims, batches are [steps, B, ...]"
            )


def normalise(
    in_dims: Any,
    w0: Any,
    hparams: Any,
    batches: Batches | None,
    *,
    steps: int,
    resumed: bool,
    randomness: str,
) -> tuple[Any, Tasks]:
    """w0 with its tasks on axis 0 of every leaf (those without are expanded), and the tasks.

    Args:
        in_dims: (of w0, of hparams), each an axis, None, or a container like the argument or a prefix of it.
        w0, hparams, batches, steps: those of the call.
        resumed: w0 is that of a state, which has the tasks on axis 0 already.
        randomness: "different", "same" or "error".

    Raises:
        TypeError: in_dims is no pair, or maps what is no tensor. ValueError: a structure, an axis or a size is wrong.
    """
    if not isinstance(in_dims, tuple) or len(in_dims) != 2:
        raise TypeError(f"in_dims must be a pair (of w0, of hparams), such as (0, None), got {in_dims!r}")
    w, spec = pytree.tree_flatten(w0)
    w_dims = _axes("w0", 0 if resumed else in_dims[0], w, spec)
    leaves, hspec = pytree.tree_flatten(hparams)
    dims = _axes("hparams", in_dims[1], leaves, hspec)
    size = _size(w, w_dims, leaves, dims, batches if steps else None)
    if batches is not None and not batches.lazy:
        for t in range(steps):
            check_batch(batches.at(t), size, t)
    moved = [
        x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(w, w_dims, strict=True)
    ]
    return pytree.tree_unflatten(moved, spec), Tasks(size, tuple(dims), randomness)


def _axes(name: str, wanted: Any, leaves: list[Any], spec: pytree.TreeSpec) -> Dims:
    """The axis of every leaf, counted from the front."""
    dims = pytree._broadcast_to_and_flatten(wanted, spec)
    if dims is None:
        raise ValueError(
            f"in_dims of {name} is {wanted!r}, which does not fit {name} with the structure {spec}: give an axis, "
            "None, or a container like it"
        )
    return [
        _axis(f"leaf {i} of {name}", dim, leaf)
        for i, (dim, leaf) in enumerate(zip(dims, leaves, strict=True))
    ]


def _axis(name: str, dim: Any, leaf: Any) -> int | None:
    if dim is None:
        return None
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"in_dims of {name} must be an axis or None, got {dim!r}")
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"in_dims of {name} is {dim}, but it is a {type(leaf).__name__}, no tensor: make it None"
        )
    if not -leaf.ndim <= dim < leaf.ndim:
        raise ValueError(f"in_dims of {name} is {dim}, but its shape is {list(leaf.shape)}")
    return dim % leaf.ndim


def _size(w: list[Any], w_dims: Dims, leaves: list[Any], dims: Dims, batches: Batches | None) -> int:
    sizes = {
        f"leaf {i} of w0": x.shape[d] for i, (x, d) in enumerate(zip(w, w_dims, strict=True)) if d is not None
    }
    sizes |= {
        f"leaf {i} of hparams": x.shape[d]
        for i, (x, d) in enumerate(zip(leaves, dims, strict=True))
        if d is not None
    }
    if not sizes and batches is not None:
        # a function of the step may draw its batch: not here
        with Streams(default_generators(w[0].device)).undisturbed():
            first = [x for x in pytree.tree_leaves(batches.at(0)) if isinstance(x, Tensor) and x.ndim]
        sizes = {"the first batch": first[0].shape[0]} if first else {}
    if not sizes:
        raise ValueError(
            "in_dims maps neither w0 nor hparams, and there are no batches [steps, B, ...]: without tasks leave it None"
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"in_dims gives different numbers of tasks: {found}")
    size: int = next(iter(sizes.values()))
    return size


def _replaced(items: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    found = list(items)
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found
