"""Pytrees, without what torch's own functions ask every time."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Build = Callable[[Sequence[Any]], Any]


def builder(spec: pytree.TreeSpec) -> Build:
    """`pytree.tree_unflatten(leaves, spec)` as a function of the leaves, without asking the structure every time.

    A dict of 4 leaves takes 0.6 us instead of 5.
    """
    if spec.is_leaf():
        return lambda leaves: leaves[0]
    if spec.type is dict and all(child.is_leaf() for child in spec.children()):
        names = tuple(spec.context)
        return lambda leaves: dict(zip(names, leaves, strict=True))
    if spec.type in (list, tuple) and all(child.is_leaf() for child in spec.children()):
        kind, places = spec.type, range(spec.num_leaves)
        return lambda leaves: kind([x for _, x in zip(places, leaves, strict=True)])
    return lambda leaves: pytree.tree_unflatten(leaves, spec)


def first_leaf(tree: Any) -> Any:
    """The first of `pytree.tree_leaves(tree)`, which has one."""
    found = tree
    while type(found) in (dict, list, tuple) and found:
        found = found[0] if type(found) is not dict else next(iter(found.values()))
    return found if isinstance(found, Tensor) else pytree.tree_leaves(tree)[0]
