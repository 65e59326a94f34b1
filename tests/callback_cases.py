"""A run that callbacks see, and the plain loop beside it."""

import torch
from generic_laws import STEPS, network
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel.engine import oracle

PLANS = [pb.StoreAll(), pb.Revolve(1), pb.Revolve(3), pb.Periodic(2), "1MiB"]


def unrolled(case, *, steps=STEPS, lr=0.1, momentum=0.5, **options):
    w0, hparams, _ = case
    return pb.unroll(network, w0, hparams, steps=steps, optimizer=pb.SGD(lr, momentum), **options)


def plain(case, steps=STEPS):
    """w_0 .. w_T of the plain loop, as graph nodes that later ones depend on."""
    w0, hparams, _ = case
    w, buffers = w0, None
    yield w
    for _ in range(steps):
        w, buffers = oracle.unroll(network, w, hparams, steps=1, lr=0.1, momentum=0.5, buffers=buffers)
        yield w


def norm(tensors):
    return torch.cat([x.flatten() for x in pytree.tree_leaves(tensors)]).norm()
