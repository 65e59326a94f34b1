"""The HO and ML objectives of Franceschi et al. (ICML 2018)."""

from pybilevel.objectives.hyperopt import ho_objective
from pybilevel.objectives.meta import MetaObjective, ml_objective

__all__ = ["MetaObjective", "ho_objective", "ml_objective"]
