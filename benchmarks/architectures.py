"""The networks of `benchmarks.networks`: small, of plain operations, each differentiable twice everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """One transformer block (pre-norm, 4 heads) and a linear read-out of its mean."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.attend(self.norms[0](x)).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        scores = (query @ key.mT / (width // 4) ** 0.5).softmax(-1)
        x = x + self.mix((scores @ value).transpose(1, 2).reshape(batch, length, width))
        return self.out((x + self.feed(self.norms[1](x))).mean(1))


class Recurrent(nn.Module):
    """An LSTM of plain operations, which can be differentiated twice everywhere, and a linear read-out."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Linear(2 * width, 4 * width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), self.width)
        for step in x.unbind(1):
            enter, forget, leave, new = self.gates(torch.cat((step, hidden), -1)).chunk(4, -1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
        return self.out(hidden)


def convnet(width: int) -> nn.Module:
    """Three strided convolutions of images 28 x 28; 113,738 parameters at width 32."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * width, 10)),
    )


def perceptron(width: int) -> nn.Module:
    """One hidden layer: so small that the calls of torch cost more than the numbers."""
    return nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 10))
