"""Inner problems: the training losses that the fused kernels know, one small file each."""

from pybilevel.problems.base import LinearProblem
from pybilevel.problems.least_squares import LeastSquares
from pybilevel.problems.mlp import MLP
from pybilevel.problems.module_loss import ModuleLoss
from pybilevel.problems.problem import Problem
from pybilevel.problems.softmax_regression import SoftmaxRegression

__all__ = ["MLP", "LeastSquares", "LinearProblem", "ModuleLoss", "Problem", "SoftmaxRegression"]
