"""The HO and ML objectives of Franceschi et al. (ICML 2018), and what a call of them would cost."""

from pybilevel.objectives.explain import explain
from pybilevel.objectives.hypergradient import Hypergradient, hypergradient
from pybilevel.objectives.hyperopt import ho_objective
from pybilevel.objectives.meta import MetaObjective, ml_objective
from pybilevel.objectives.verification import Verification

__all__ = [
    "Hypergradient",
    "MetaObjective",
    "Verification",
    "explain",
    "ho_objective",
    "hypergradient",
    "ml_objective",
]
