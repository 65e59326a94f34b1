"""What hangs behind a value in autograd's graph."""

import torch

graph_leaves = torch.ops.pybilevel.graph_leaves.default
"""The leaves of a value's graph, any device:

    graph_leaves(value, own [k]) -> (leaves, kinds)

Those that carry gradients into `value` beside `own` (and not by them), and the names of the kinds of nodes in between,
once each: "custom" for those that a custom autograd.Function made. Cost: about 0.1 us a node."""

plain_graph = torch.ops.pybilevel.plain_graph.default
"""plain_graph(value, own [k]) -> whether `graph_leaves` would find no leaf and no "custom"; a quarter of its time."""
