"""Inner optimizers: the dynamics Phi_t of the paper, one small file each."""

from pybilevel.optimizers.base import Buffers, Optimizer
from pybilevel.optimizers.later import Adagrad, Adam, AdamW, RMSprop
from pybilevel.optimizers.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Buffers", "Optimizer", "RMSprop"]
