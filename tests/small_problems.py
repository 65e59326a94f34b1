"""A small fused problem and its unroll, for tests of what surrounds the kernels."""

import torch

import pybilevel as pb


def problem(x=None, c=3):
    x = torch.randn(3, 6, 4, dtype=torch.float64) if x is None else x
    n = x.shape[-2]
    return pb.SoftmaxRegression(x, torch.arange(n).expand(x.shape[:-1]) % c, num_classes=c)


def unroll(inner, w0=None, *, steps=5, lr=0.3, momentum=0.5, **options):
    return pb.unroll(inner, w0, steps=steps, optimizer=pb.SGD(lr, momentum), **{"backend": "fused"} | options)


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def tasks(*lead, n=6, m=5, d=4, c=3):
    x, query = leaf(*lead, n, d), leaf(*lead, m, d)
    y, query_y = (torch.arange(k).expand(*lead, k) % c for k in (n, m))
    return x, y, query, query_y
