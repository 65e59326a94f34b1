"""A whole meta-step, from the encoder to the updated parameters, in one CUDA graph: the same bits as without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pybilevel as pb

Step = tuple[Tensor, list[Tensor]]
Sizes = tuple[int, int, int, int, int]

FEW_SHOT: Sizes = (16, 5, 15, 64, 5)  # tasks, rows, queries, features, classes: a block per task
LARGE: Sizes = (1, 3000, 500, 200, 10)  # one task on all blocks: a cooperative launch


class MetaStep:
    """Encoder, inner step size and a plain outer update, on buffers that a graph can hold on to."""

    def __init__(self, sizes: Sizes) -> None:
        tasks, rows, queries, features, self.classes = sizes
        draw = torch.Generator("cuda").manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device="cuda")

        self.support, self.query = normal(tasks, rows, 32), normal(tasks, queries, 32)
        self.support_y = torch.randint(self.classes, (tasks, rows), generator=draw, device="cuda")
        self.query_y = torch.randint(self.classes, (tasks, queries), generator=draw, device="cuda")
        self.parameters = [
            (0.1 * normal(32, features)).requires_grad_(),
            torch.full((), 0.05, device="cuda", requires_grad=True),
        ]

    def __call__(self) -> Step:
        encoder, lr = self.parameters
        loss, _ = pb.ml_objective(
            *((self.support @ encoder).tanh(), self.support_y),
            *((self.query @ encoder).tanh(), self.query_y),
            steps=4,
            optimizer=pb.SGD(lr, momentum=0.9),
            num_classes=self.classes,
            backend="fused",
        )
        grads = torch.autograd.grad(loss.mean(), self.parameters)
        with torch.no_grad():
            for parameter, grad in zip(self.parameters, grads, strict=True):
                parameter.sub_(0.01 * grad)
        return loss.detach(), list(grads)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [FEW_SHOT, LARGE], ids=["block-per-task", "whole-grid"])
def test_a_captured_meta_step_gives_the_same_bits(sizes: Sizes) -> None:
    eager, captured = MetaStep(sizes), MetaStep(sizes)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first call copies the plan to the device, which a capture may not
        captured()
    torch.cuda.current_stream().wait_stream(side)
    eager()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grads = captured()
    for _ in range(3):
        graph.replay()
        want_loss, want_grads = eager()
        assert torch.isfinite(want_loss).all()
        assert torch.equal(loss, want_loss)
        for grad, want in zip(grads, want_grads, strict=True):
            assert torch.equal(grad, want)
