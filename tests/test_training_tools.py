"""What research training puts around an unroll: gradient accumulation, mixed precision, data-parallel processes."""

import faulthandler
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tolerance import assert_matches
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pybilevel as pb

BACKENDS = ["fused", "generic"]


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def episodes(tasks):
    torch.manual_seed(1)
    support, query = torch.randn(tasks, 7, 6).double(), torch.randn(tasks, 9, 6).double()
    return support, torch.randint(0, 3, (tasks, 7)), query, torch.randint(0, 3, (tasks, 9))


def meta_loss(net, batch, backend, lr=0.3):
    support, support_y, query, query_y = batch
    loss, _ = pb.ml_objective(
        *(net(support), support_y, net(query), query_y),
        steps=4,
        optimizer=pb.SGD(lr),
        num_classes=3,
        backend=backend,
    )
    return loss.mean()


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_accumulate_over_batches_of_tasks(backend):
    whole, parts = encoder(), encoder()
    batch = episodes(6)
    meta_loss(whole, batch, backend).backward()
    for i in range(3):
        (meta_loss(parts, [x[2 * i : 2 * i + 2] for x in batch], backend) / 3).backward()
    for found, expected in zip(gradients(parts), gradients(whole), strict=True):
        assert_matches(found, expected, "accumulated")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scaled_loss_has_scaled_gradients_that_unscale(backend):
    plain, scaled = encoder().float(), encoder().float()
    batch = [x.float() if x.is_floating_point() else x for x in episodes(4)]
    meta_loss(plain, batch, backend).backward()
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(meta_loss(scaled, batch, backend)).backward()
    scaler.unscale_(optimizer)
    for found, expected in zip(gradients(scaled), gradients(plain), strict=True):
        assert torch.equal(found, expected)  # a power of two changes exponents only
    before = [p.detach().clone() for p in scaled.parameters()]
    scaler.step(optimizer)
    assert all(not torch.equal(p, b) for p, b in zip(scaled.parameters(), before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_encoder_under_autocast_feeds_an_unroll_in_float32(backend):
    net = encoder().float()
    batch = [x.float() if x.is_floating_point() else x for x in episodes(4)]
    with torch.autocast("cpu", torch.bfloat16):
        support, query = net(batch[0]), net(batch[2])
    assert support.dtype == torch.bfloat16
    loss, logits = pb.ml_objective(
        *(support, batch[1], query, batch[3]), steps=3, optimizer=pb.SGD(0.3), num_classes=3, backend=backend
    )
    assert loss.dtype == logits.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def _worker(rank, folder):
    faulthandler.dump_traceback_later(100, exit=True)  # a deadlock is a failure, not a wait
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    _train(rank, folder)  # a function of its own: a module that outlives its process group can hang
    dist.barrier()
    dist.destroy_process_group()


def _train(rank, folder):
    net = DistributedDataParallel(encoder())
    for backend in BACKENDS:
        net.zero_grad()
        mine = [x[2 * rank : 2 * rank + 2] for x in episodes(4)]
        meta_loss(net, mine, backend).backward()
        torch.save(gradients(net), f"{folder}/{backend}-{rank}.pt")


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_data_parallel_processes_average_the_hypergradients(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    net = encoder()
    meta_loss(net, episodes(4), "fused").backward()
    for backend in BACKENDS:
        both = [torch.load(tmp_path / f"{backend}-{rank}.pt") for rank in range(2)]
        for first, second, expected in zip(*both, gradients(net), strict=True):
            assert torch.equal(first, second)
            assert_matches(first, expected, f"data parallel, {backend}")
