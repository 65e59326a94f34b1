"""The operators of the spectral method (csrc/ops/spectral.cpp), on a CPU, not differentiable themselves."""

import torch
from torch import Tensor


def spectral_native(tensor: Tensor) -> bool:
    """Whether the operators take tensors of this one's device."""
    return tensor.device.type == "cpu"


spectral_normal = torch.ops.pybilevel.spectral_normal.default
"""The matrix of normal equations, for every task:

    spectral_normal(x [*B, n, D], scale [*B, n]) -> x^T diag(scale) x [*B, D, D], both float64

Only its upper triangle is made: what is below the diagonal has no meaning. Cost: n D^2 operations, half of a product's.
No result depends on the number of threads."""

spectral_power = torch.ops.pybilevel.spectral_power.default
"""T steps of constant SGD on a quadratic as a map of K = 1 number, or 2 with momentum, at every eigenvalue:

    spectral_power(values [*B, r], lr [*B, 1], momentum [*B, 1] or None, decay [*B, 1], nesterov, steps)
        -> [K (K + 1), *B, r], row by row of the map (`pybilevel.engine.spectral_powers.Map`); all float64"""

spectral_edges = torch.ops.pybilevel.spectral_edges.default
"""The divided differences of each entry of that power with the last eigenvalue; arguments and results alike."""

spectral_pairs = torch.ops.pybilevel.spectral_pairs.default
"""Products weighted by the divided differences f[l_i, l_j] of that power:

    spectral_pairs(the arguments of spectral_power, products [K (K + 1)] of [*B, r, r] or None)
        -> sum over entries e of f_e[l_i, l_j] (P_e[i, j] + P_e[j, i]), [*B, r, r], as the products float32 or float64

Cost: r^2 / 2 pairs; of each, for each of up to 2 log2(steps) products of maps, 8 operations in registers, 46 with
K = 2. No result depends on the number of threads."""
