"""The derivative of an unroll along one direction of its inputs, by means that share nothing with the reverse half.

One tangent goes with the iterate. That of the inner gradient is taken in forward mode over the gradient; where an
operation has no forward derivative, by central differences of the gradient, which need no second derivative at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate, Moment, Tensors
from pybilevel.engine.step_tangents import push_step

Dots = Sequence[Tensor | None]


class Derivative(NamedTuple):
    """What `along` returns.

    Attributes:
        w: the parameters w_T, one tensor a leaf.
        dots: their derivatives.
        differences: whether central differences were needed.
    """

    w: Tensors
    dots: Tensors
    differences: bool


def along(dynamics: Dynamics, steps: int, dots: Dots) -> Derivative:
    """w_T and its derivative along `dots`, one a tensor of start, theta and settings; None stands for zeros.

    Cost: about 4 gradients of the inner loss a step; memory of one step.
    """
    states, split = len(dynamics.start.flat()), len(dynamics.theta)
    walk = _Walk(dynamics, dots[states : states + split], dots[states + split :])
    now = dynamics.start.detach()
    moving = [
        (torch.zeros_like(x) if dot is None else dot.detach()) if x.is_floating_point() else None
        for x, dot in zip(now.flat(), dots, strict=False)
    ]
    with torch.no_grad(), dynamics.streams.undisturbed():
        for t in range(steps):
            now, moving = walk.step(t, now, moving)
    return Derivative(list(now.w), [dot for dot in moving[: len(now.w)] if dot is not None], walk.differences)


class _Walk:
    def __init__(self, dynamics: Dynamics, theta_dots: Dots, setting_dots: Dots) -> None:
        self._dynamics = dynamics
        self._theta, self._settings = dynamics.constants()
        self._theta_dots, self._setting_dots = theta_dots, setting_dots
        self.differences = False

    def step(self, t: int, now: Iterate, dots: list[Tensor | None]) -> tuple[Iterate, list[Tensor | None]]:
        """The iterate t + 1 and its tangent."""
        dynamics = self._dynamics
        theta = dynamics.theta_at(self._theta, t)
        theta_dots = [
            None if dot is None else dynamics.place_theta(i, t, dot) for i, dot in enumerate(self._theta_dots)
        ]
        moment = Moment(t, now.carried)
        g = dynamics.gradient_map.gradient(now.w, theta, moment=moment)
        g_dots = self._gradient_dots(now, theta, [*dots[: len(g)], *theta_dots], t)
        settings = dynamics.at(self._settings, t)
        setting_dots = [
            None if dot is None else dynamics.place(i, t, dot) for i, dot in enumerate(self._setting_dots)
        ]
        found = push_step(dynamics, now, g, settings, _rows([*dots, *g_dots, *setting_dots]))
        after = dynamics.step(now, g, settings, moment.after)
        return after, [None if x is None else x[0] for x in found]

    def _gradient_dots(self, now: Iterate, theta: Tensors, dots: Dots, t: int) -> Tensors:
        gradient_map, moment = self._dynamics.gradient_map, Moment(t, now.carried)
        if not self.differences:
            wanted = [dot is not None for dot in dots[len(now.w) :]]
            given = [dot for i, dot in enumerate(dots) if i < len(now.w) or dot is not None]
            try:
                return gradient_map.tangent(now.w, theta, wanted, given, moment)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self.differences = True
        points = [*now.w, *theta]
        size = sum(float(dot.square().sum()) for dot in dots if dot is not None) ** 0.5
        scale = 1.0 + sum(float(x.square().sum()) for x in now.w) ** 0.5
        h = torch.finfo(now.w[0].dtype).eps ** (1 / 3) * scale / (size or 1.0)

        def at(sign: int) -> Tensors:
            moved = [x if dot is None else x + sign * h * dot for x, dot in zip(points, dots, strict=True)]
            split = len(now.w)
            return gradient_map.gradient(moved[:split], moved[split:], moment=moment)

        return [(above - below) / (2 * h) for above, below in zip(at(1), at(-1), strict=True)]


def _rows(dots: Dots) -> list[Tensor | None]:
    return [None if dot is None else dot[None] for dot in dots]
