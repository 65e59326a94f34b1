"""The outer objective's own paths: large gradients that bypass the caches, and softmax at every size of logits."""

import pytest
import torch
from linear_cases import forced, regimes
from torch.nn.functional import softmax, softplus

import pybilevel as pb

STREAMED = 16 << 20
"""Bytes of the query features' gradient from which it is written past the caches (csrc/problems/linear_outer.hpp)."""

ROWS_OF_D = {256: 256, 264: 249, 250: 264, 255: 259}
"""Features, and query rows that make 64 tasks of float32 reach `STREAMED` and 32 not; rows lie at any alignment."""


def gradients(x, query, w0, tasks):
    """Of the query features and the support features; labels are those of the row."""
    leaves = [t[tasks].detach().requires_grad_() for t in (x, query)]
    c = w0.shape[-1]
    labels, query_labels = (torch.arange(t.shape[1]).expand(t.shape[:2]) % c for t in leaves)
    inner = pb.SoftmaxRegression(leaves[0], labels, num_classes=c)
    outer = pb.SoftmaxRegression(leaves[1], query_labels, num_classes=c)
    options = {"steps": 2, "optimizer": pb.SGD(0.1), "backend": "fused"}
    losses = pb.ho_objective(inner, outer, w0[tasks], **options)
    return torch.autograd.grad(losses.sum(), leaves)


@pytest.mark.parametrize(("d", "c"), [*((d, 3) for d in ROWS_OF_D), (264, 1), (264, 5), (256, 6)])
@pytest.mark.parametrize(
    ("way", "regime"), [(way, regime) for way in ("primal", "dual", "lanes") for regime in regimes(way)]
)
def test_a_gradient_too_large_for_the_caches_has_the_same_bits(way, regime, d, c):
    """The same tasks in two halves, each of which the caches hold."""
    m = ROWS_OF_D[d]
    x, query, w0 = (torch.randn(64, *shape) for shape in ((4, d), (m, d), (d + 1, c)))
    with forced(way, regime):
        whole = gradients(x, query, w0, slice(None))
        halves = [gradients(x, query, w0, slice(first, first + 32)) for first in (0, 32)]
    assert whole[1].nbytes >= STREAMED > halves[0][1].nbytes
    for together, apart in zip(whole, zip(*halves, strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("count", [1, 7, 161])
def test_softmax_is_exact_at_every_size_of_logits(dtype, limit, count):
    """Two classes with logits 0 and z: the loss of a row of class 0 is log(1 + exp(z)), its residual sigmoid(z)."""
    z = torch.linspace(-760, 760, 160, dtype=torch.float64)
    z = torch.cat([torch.zeros(1), z, torch.linspace(-3, 3, 161), z / 1e3])[-count:].to(dtype)
    query, weights = z[:, None].clone().requires_grad_(), torch.ones(count, dtype=dtype).requires_grad_()
    labels = torch.zeros(count, dtype=torch.int64)
    inner = pb.SoftmaxRegression(query.new_ones(1, 1), labels[:1], num_classes=2, bias=False)
    outer = pb.SoftmaxRegression(query, labels, num_classes=2, bias=False, weights=weights, reduction="sum")
    w0 = torch.tensor([[0.0, 1.0]], dtype=dtype)
    loss = pb.ho_objective(inner, outer, w0, steps=1, optimizer=pb.SGD(0.0), backend="fused")
    residuals, values = torch.autograd.grad(loss, (query, weights))
    exact = z.double()
    assert ((values - softplus(exact, threshold=800)).abs() <= limit * (1 + exact.abs())).all()
    both = torch.stack([torch.zeros_like(exact), exact], -1)
    assert ((residuals[:, 0] - softmax(both, -1)[:, 1]).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 8, 19, 75])
@pytest.mark.parametrize(
    ("way", "regime"), [(way, regime) for way in ("primal", "dual", "lanes") for regime in regimes(way)]
)
def test_where_labels_and_weights_lie_changes_no_bit(way, regime, m, dtype):
    """Labels side by side or in every second place; one weight for all rows or as many as there are."""
    tasks, n, d, c = 3, 5, 9, 5
    x, query, w0 = (torch.randn(tasks, *s, dtype=dtype) for s in ((n, d), (m, d), (d + 1, c)))
    weight = torch.tensor(0.7, dtype=dtype)
    labels = [torch.randint(c, (tasks, rows)) for rows in (n, m)]
    apart = [y.repeat_interleave(2, dim=1)[:, ::2] for y in labels]

    def results(labels, spread):
        leaves = [t.clone().requires_grad_() for t in (x, query)]
        problems = [
            pb.SoftmaxRegression(leaf, y, num_classes=c, weights=spread(weight.expand(y.shape)))
            for leaf, y in zip(leaves, labels, strict=True)
        ]
        losses = pb.ho_objective(*problems, w0, steps=3, optimizer=pb.SGD(0.1), backend="fused")
        return [losses, *torch.autograd.grad(losses.sum(), leaves)]

    with forced(way, regime):
        one = results(labels, lambda weights: weights)
        for other in (results(labels, torch.clone), results(apart, torch.Tensor.contiguous)):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
