"""Data-parallel training of what lies before the inner problem: the node is ordinary, so hooks and buckets see it."""

import copy

import pytest
import torch
import torch.distributed as dist
from tolerance import assert_matches
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pybilevel as pb

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture
def one_process(tmp_path):
    """A group of one: buckets and hooks run as in a larger one, and averaging over it is the identity."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fused(features, query):
    loss, _ = pb.ml_objective(
        features, torch.arange(5) % 3, query, torch.arange(5) % 3, steps=4, optimizer=pb.SGD(0.1)
    )
    return loss


def generic(features, query):
    w0 = torch.zeros(6, 3, dtype=torch.float64)

    def loss(w, features):
        return (features @ w - 1).square().mean()

    w = pb.unroll(loss, w0, features, steps=4, optimizer=pb.Adam(0.1), memory=pb.Revolve(2))
    return (query @ w).square().sum()


@pytest.mark.parametrize("objective", [fused, generic])
def test_an_encoder_in_data_parallel_gets_the_gradients_it_gets_without(objective, one_process):
    encoder = nn.Sequential(nn.Linear(8, 6), nn.Tanh()).double()
    parallel = DistributedDataParallel(copy.deepcopy(encoder))
    x, q = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    for model in (encoder, parallel):
        for _ in range(2):  # two outer steps: the buckets of the first are ready for the second
            model.zero_grad()
            features, query = model(torch.cat([x, q])).split(5)
            objective(features, query).backward()
    for mine, other in zip(parallel.parameters(), encoder.parameters(), strict=True):
        assert_matches(mine.grad, other.grad)
