"""One step of training as a part of autograd's graph."""

import torch

chain_step = torch.ops.pybilevel.chain_step.default
"""From the inner loss at an iterate to the next iterate, in their graph, differentiable once; any device with kernels:

    chain_step(value, state [w, then buffers], known, settings [SETTINGS], optimizer, flags, start, leaves,
               record [steps, SETTINGS] or None, t, count=None) -> (w and buffers after the step, plain)

`value` is the loss at the `leaves` tensors w. The optimizer's step by its gradient, which keeps its graph, is one node,
whose backward writes the cotangents of the settings, which carry no graph, into row t of `record`; without one,
the node of an optimizer that is linear in state and gradient holds neither. `plain`: nothing but w and `known` carries
gradients into the loss, and no custom function is in between. The rest as of `optimizer_step`. Cost: the gradient, and
about 10 us."""
