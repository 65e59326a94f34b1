"""Small modules and their batches, for the tests of `ModuleLoss`."""

import torch
import torch.nn.functional as F
from generic_laws import STEPS
from torch import nn

from pybilevel.schedules import Revolve, StoreAll

PLANS = [StoreAll(), Revolve(3), "1MiB"]
X, Y = torch.randn(STEPS, 8, 4).double(), torch.randint(3, (STEPS, 8))


def make(norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(4, 5), norm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def criterion(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def unchanged(net, before):
    return all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def buffers_of(net):
    return {name: b.clone() for name, b in net.named_buffers()}


class Averaging(nn.Module):
    """A module of a user: centres its input by a running mean that it keeps, one buffer changed, one assigned."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("constant", torch.full((3,), 0.5))

    def forward(self, x):
        z = self.linear(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * z.mean(0))
            self.count = self.count + 1
        return (z - self.mean) / self.count.sqrt() + self.constant
