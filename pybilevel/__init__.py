"""Fast bilevel programming: differentiate through the training of an inner model."""

from pybilevel._C import build_info
from pybilevel.engine.callbacks import InnerStep, ReverseStep
from pybilevel.engine.explanation import Explanation
from pybilevel.engine.recorder import Recorder
from pybilevel.engine.state import State
from pybilevel.engine.unroll import unroll
from pybilevel.errors import BackendError, DivergenceError, VerificationError
from pybilevel.methods import Forward, Implicit, Reverse, Spectral
from pybilevel.objectives import (
    Hypergradient,
    MetaObjective,
    Verification,
    explain,
    ho_objective,
    hypergradient,
    ml_objective,
)
from pybilevel.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, constraints, from_torch
from pybilevel.problems import MLP, LeastSquares, ModuleLoss, SoftmaxRegression
from pybilevel.schedules import Offload, Periodic, Plan, Revolve, Schedule, StoreAll

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BackendError",
    "DivergenceError",
    "Explanation",
    "Forward",
    "Hypergradient",
    "Implicit",
    "InnerStep",
    "LeastSquares",
    "MetaObjective",
    "ModuleLoss",
    "Offload",
    "Optimizer",
    "Periodic",
    "Plan",
    "RMSprop",
    "Recorder",
    "Reverse",
    "ReverseStep",
    "Revolve",
    "Schedule",
    "SoftmaxRegression",
    "Spectral",
    "State",
    "StoreAll",
    "Verification",
    "VerificationError",
    "build_info",
    "constraints",
    "explain",
    "from_torch",
    "ho_objective",
    "hypergradient",
    "ml_objective",
    "unroll",
]
