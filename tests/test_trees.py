"""Pytrees made and asked many times: what torch's own functions give."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree

from pybilevel.engine.trees import builder, first_leaf

Pair = namedtuple("Pair", ["a", "b"])
x, y, z = (torch.full((), float(i)) for i in range(3))
TREES = [
    x,
    3,
    None,
    {"b": x, "a": y},
    {"b": {"c": x}, "a": [y, z]},
    {2: x, "a": "name", (1, 2): None},
    OrderedDict(b=x, a=y),
    Pair([x], (y, {"k": z})),
    [x, y],
    (),
    {},
    [[], x],
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_a_tree_is_built_from_its_leaves(tree):
    leaves, spec = pytree.tree_flatten(tree)
    build = builder(spec)
    again = build(leaves)
    assert (again is tree) == (spec.is_leaf() or tree == ())
    assert type(again) is type(tree)
    found, found_spec = pytree.tree_flatten(again)
    assert found_spec == spec and all(a is b for a, b in zip(found, leaves, strict=True))
    if not spec.is_leaf() and leaves:
        with pytest.raises(ValueError):
            build(leaves[1:])


@pytest.mark.parametrize("tree", [tree for tree in TREES if pytree.tree_leaves(tree)], ids=repr)
def test_the_first_leaf(tree):
    assert first_leaf(tree) is pytree.tree_leaves(tree)[0]
