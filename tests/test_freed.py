"""A derived tensor built outside the loop: named at the second backward, whatever backend."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pybilevel as pb


def encoder():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


def loss(w, hparams):
    return (hparams @ w).square().mean() + (w - 1).square().sum()


def train(features, backend, retain=False):
    inner = pb.LeastSquares(features, torch.ones(5))
    w = pb.unroll(inner, steps=2, optimizer=pb.SGD(0.1), backend=backend)
    w.square().sum().backward(retain_graph=retain)


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_a_freed_graph_behind_the_data_is_named(backend):
    features = encoder()(torch.randn(5, 4))
    train(features, backend)
    with pytest.raises(
        RuntimeError, match=r"of shape \[(1, )?5, 3\], was computed before the loop.*inside the loop"
    ):
        train(features, backend)


def test_a_freed_graph_behind_a_step_size_is_named():
    log_lr = torch.tensor(-2.0, requires_grad=True)
    lr = log_lr.exp()
    inner = pb.LeastSquares(torch.randn(5, 3), torch.ones(5))
    pb.unroll(inner, steps=2, optimizer=pb.SGD(lr)).sum().backward()
    with pytest.raises(RuntimeError, match=r"lr, of shape .*retain_graph=True"):
        pb.unroll(inner, steps=2, optimizer=pb.SGD(lr)).sum().backward()


def test_a_freed_graph_behind_hparams_or_w0_is_named():
    w0, hparams = (encoder()(torch.randn(n, 4)) for n in (3, 5))
    for arguments, name in (((w0, hparams.detach()), "w0"), ((w0.detach(), hparams), "hparams")):
        pb.unroll(loss, *arguments, steps=2, optimizer=pb.SGD(0.1)).sum().backward()
        with pytest.raises(RuntimeError, match=name):
            pb.unroll(loss, *arguments, steps=2, optimizer=pb.SGD(0.1)).sum().backward()


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_a_retained_or_a_new_graph_is_fine(backend):
    net = encoder()
    features = net(torch.randn(5, 4))
    for _ in range(3):
        train(features, backend, retain=True)
        train(net(torch.randn(5, 4)), backend)


def test_a_checkpointed_encoder_is_not_run_for_the_check():
    calls = []
    net = encoder()

    def run(x):
        calls.append(1)
        return net(x)

    for _ in range(2):
        features = checkpoint(run, torch.randn(5, 4), use_reentrant=False)
        train(features, "fused")
    assert len(calls) == 4  # forward and recomputation, twice
