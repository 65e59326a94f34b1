"""Networks on which forecasts of memory are held against a meter."""

from torch import nn

FORECAST = 0.15
"""How far off the forecast may be, of what is measured."""


def convolutional(norm):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def dense(dropout=0.0):
    return nn.Sequential(
        nn.Linear(64, 256), nn.Tanh(), nn.Dropout(dropout), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
    )


NETS = {
    "conv": (lambda: convolutional(False), (8, 3, 8, 8)),
    "conv and norm": (lambda: convolutional(True), (8, 3, 8, 8)),
    "dense": (dense, (32, 64)),
    "dense, large batches": (dense, (1024, 64)),
    "dropout": (lambda: dense(0.5), (32, 64)),
}
