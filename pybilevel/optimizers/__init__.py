"""Inner optimizers: the dynamics Phi_t of the paper, one small file each."""

from pybilevel.optimizers.adagrad import Adagrad
from pybilevel.optimizers.adam import Adam
from pybilevel.optimizers.adamw import AdamW
from pybilevel.optimizers.base import Buffers, Optimizer
from pybilevel.optimizers.bridge import from_torch
from pybilevel.optimizers.rmsprop import RMSprop
from pybilevel.optimizers.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Buffers", "Optimizer", "RMSprop", "from_torch"]
