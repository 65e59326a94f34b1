"""Random linear inner problems, solved by the fused engine and by the oracle: what every law test of it shares.

The tables at the top are keyed by the native registry; a row without an entry fails `test_registry_has_data`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from linear_leaves import Leaves, arranged, setting_shape
from linear_optimizers import LINEAR, VARIANTS
from optimizer_cases import build, optimizers
from torch import Tensor

import pybilevel as pb
from pybilevel import _C
from pybilevel.engine import oracle
from pybilevel.problems import LinearProblem

PROBLEMS: dict[str, type[LinearProblem]] = {"softmax": pb.SoftmaxRegression, "squared": pb.LeastSquares}
"""The class of every row loss."""

TARGETS = {"softmax": ("labels", "soft"), "squared": ("soft",)}
"""The kinds of targets of every row loss: integer classes, or [n, c] that may carry gradients."""

FORMS = ("number", "scalar", "step", "task", "both")
"""The grammar of a setting: a number, (), [T], [*B, 1], [*B, T]."""

STRIDES = ("contiguous", "transposed", "rotated", "sliced", "expanded")
OBJECTIVES = ("state", "ho", "ml")

WAYS = {"dual": ("dual", "lanes")}
"""The ways to run in coordinates that have several: as they are, and with a task per SIMD lane."""

ROWS = [
    (loss, targets, way, optimizer)
    for loss, coordinates in _C.registry()["problems"]
    for way in WAYS.get(coordinates, (coordinates,))
    for targets in TARGETS.get(loss, ())
    for optimizer in _C.registry()["optimizers"]
    if way == "primal" or optimizer in LINEAR
]
"""Every problem of the registry, in every way, with every optimizer of the registry that runs in it."""

PAIRS = [(*row, variant) for row in ROWS for variant in VARIANTS.get(row[-1], ())]


@dataclass(frozen=True)
class Case:
    """One inner problem and its outer objective, up to the random numbers.

    Attributes:
        loss, targets, optimizer, variant: keys of the tables above.
        tasks, n, m, d, c, steps: sizes; m outer rows.
        forms: the form of every setting, in the order of the variant (repeated as needed).
        l2: "number", "scalar" or "task".
        weights: "none", "random" or "zeros" (some are 0), of both levels.
        w0: whether initial parameters are given.
        strides: how the memory of every tensor lies, see `linear_leaves.arranged`.
        objective: "state" (w_T and the velocity), "ho" (loss) or "ml" (loss and logits; of reduction "mean").
        amplitude: the size of the features.
    """

    loss: str = "softmax"
    targets: str = "labels"
    optimizer: str = "sgd"
    variant: str = "momentum"
    tasks: tuple[int, ...] = (3,)
    n: int = 7
    m: int = 5
    d: int = 6
    c: int = 4
    steps: int = 5
    bias: bool = True
    reduction: str = "mean"
    forms: tuple[str, ...] = ("both",)
    l2: str = "task"
    weights: str = "random"
    w0: bool = True
    strides: str = "contiguous"
    objective: str = "ho"
    amplitude: float = 1.0
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def inputs(self) -> dict[str, Tensor]:
        """Fresh leaves that ask for gradients, by name; those that this objective uses."""
        return Leaves(self, VARIANTS[self.optimizer][self.variant][0]).by_name


@dataclass(frozen=True)
class Solution:
    """Results and their gradients, by name."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Built:
    """The problem, the outer problem and the optimizer's settings of a case on its leaves."""

    def __init__(self, case: Case, leaves: dict[str, Tensor]) -> None:
        self.case = case
        self.leaves = leaves
        numbers, self.flags = VARIANTS[case.optimizer][case.variant]
        self.settings: dict[str, Any] = {
            name: self._view(name, setting_shape(case.forms[i % len(case.forms)], case), size)
            for i, (name, size) in enumerate(numbers.items())
        }
        self.w0 = self._view("w0", (*case.tasks, case.d + case.bias, case.c), None)
        self.l2 = self._view("l2", case.tasks if case.l2 == "task" else (), 0.05)
        self.x, self.y, self.weights = self._data("", case.n)
        self.problem = self._problem(self.x, self.y, self.weights, self.l2, case.reduction)
        if case.objective != "state":
            self.query_x, self.query_y, self.query_weights = self._data("query_", case.m)
            l2 = self.l2 if case.objective == "ho" else 0.0
            reduction = case.reduction if case.objective == "ho" else "mean"
            self.outer = self._problem(self.query_x, self.query_y, self.query_weights, l2, reduction)

    def _view(self, name: str, shape: tuple[int, ...] | None, otherwise: Any) -> Any:
        leaf = self.leaves.get(name)
        return otherwise if leaf is None or shape is None else arranged(self.case.strides, leaf)(shape)

    def _data(self, prefix: str, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
        case = self.case
        x = self._view(prefix + "x", (*case.tasks, rows, case.d), None)
        weights = self._view(prefix + "weights", (*case.tasks, rows), None)
        if case.targets == "soft":
            return x, self._view(prefix + "y", (*case.tasks, rows, case.c), None), weights
        generator = torch.Generator().manual_seed(case.seed + rows)
        return x, torch.randint(case.c, (*case.tasks, rows), generator=generator), weights

    def _problem(self, x, y, weights, l2, reduction) -> LinearProblem:
        more = {} if self.case.targets == "soft" else {"num_classes": self.case.c}
        return PROBLEMS[self.case.loss](
            x, y, weights=weights, l2=l2, bias=self.case.bias, reduction=reduction, **more
        )

    def solver(self) -> Any:
        """The optimizer as the package has it."""
        return self.solver_with(self.settings)

    def solver_with(self, settings: dict[str, Any]) -> Any:
        """The same optimizer with other settings."""
        return build(optimizers()[self.case.optimizer], **settings, **self.flags)

    def fused(self, **options: Any) -> dict[str, Tensor]:
        """The results of the fused engine, through the public calls."""
        options = {
            "steps": self.case.steps,
            "optimizer": self.solver(),
            "w0": self.w0,
            "backend": "fused",
            **options,
        }
        if self.case.objective == "state":
            w, state = pb.unroll(self.problem, return_state=True, **options)
            return {"w": w} | self.buffers(state)
        if self.case.objective == "ho":
            return {"loss": pb.ho_objective(self.problem, self.outer, **options)}
        found = pb.ml_objective(
            self.x,
            self.y,
            self.query_x,
            self.query_y,
            loss="cross_entropy" if self.case.loss == "softmax" else "squared_error",
            l2=self.l2,
            weights=self.weights,
            query_weights=self.query_weights,
            bias=self.case.bias,
            num_classes=self.case.c,
            **options,
        )
        return {"loss": found.loss, "logits": found.logits}

    def buffers(self, state: pb.State) -> dict[str, Tensor]:
        """Those of a state that have a value a parameter."""
        names = self.solver().buffer_names
        return {
            f"buffer{i}": b
            for i, (name, b) in enumerate(zip(names, state.buffers[0], strict=True))
            if name != "step"
        }

    def oracle(self, truncate: int | None = None) -> dict[str, Tensor]:
        """The results of the plain loop, in the dtype of the case."""
        w0 = self.problem.initial() if self.w0 is None else self.w0
        w, buffers = oracle.unroll(
            self.problem,
            w0,
            steps=self.case.steps,
            rule=self.case.optimizer,
            truncate=truncate,
            **self.settings,
            **self.flags,
        )
        if self.case.objective == "state":
            names = self.solver().buffer_names
            return {"w": w} | {
                f"buffer{i}": buffers.get(n, torch.zeros_like(w)) for i, n in enumerate(names) if n != "step"
            }
        found = {"loss": self.outer(w)}
        return found | ({"logits": self.outer.logits(w, self.query_x)} if self.case.objective == "ml" else {})


def total(values: dict[str, Tensor]) -> Tensor:
    """One number of all results: a fixed random linear functional."""
    generator = torch.Generator().manual_seed(1)
    return sum((v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in values.values())


def fused(case: Case, **options: Any) -> Solution:
    """Values and every gradient by the fused engine; none of them may be None."""
    leaves = case.inputs()
    values = Built(case, leaves).fused(**options)
    found = torch.autograd.grad(total(values), list(leaves.values()))
    return Solution(_detached(values), dict(zip(leaves, found, strict=True)))


def plain(case: Case, truncate: int | None = None) -> Solution:
    """Values and every gradient by autograd through the plain loop."""
    leaves = case.inputs()
    values = Built(case, leaves).oracle(truncate)
    found = torch.autograd.grad(total(values), list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
    return Solution(_detached(values), gradients)


@lru_cache(512)  # coordinates, regimes and schedules share it
def exact(case: Case, truncate: int | None = None) -> Solution:
    """The plain loop in float64, on the same numbers.

    Where a sum of squared gradients is exactly 0 (one class, no weight), autograd makes NaN of the derivative of its
    root: then the generic engine, whose laws say what stands there.
    """
    case = dataclasses.replace(case, dtype=torch.float64)
    found = plain(case, truncate)
    if case.optimizer in LINEAR or all(g.isfinite().all() for g in found.gradients.values()):
        return found
    options = {} if truncate is None else {"method": pb.Reverse(truncate=truncate)}
    return fused(case, backend="generic", **options)


def assert_same_bits(a: Solution, b: Solution) -> None:
    """Bitwise equality of all values and gradients."""
    for x, y in ((a.values, b.values), (a.gradients, b.gradients)):
        assert x.keys() == y.keys()
        for name in x:
            assert torch.equal(x[name], y[name]), f"{name} differs by {(x[name] - y[name]).abs().max()}"


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


def regimes(way: str) -> tuple[str, ...]:
    """The regimes that a way of `ROWS` can run in."""
    return ("lanes",) if way == "lanes" else ("tasks", "rows")


@contextmanager
def forced(way: str | None = None, regime: str | None = None) -> Iterator[None]:
    """Within it the fused engine runs in this way and this regime, whatever is cheaper.

    A call that dual coordinates cannot take runs in primal ones, and a task at a time.
    """
    layout = "pybilevel.engine.layout"
    coordinates = "dual" if way == "lanes" else way
    regime = "lanes" if way == "lanes" else regime

    def choose(size, wanted, excluded):
        return "primal" if coordinates in excluded else coordinates

    def choose_regime(size, chosen, lanes):
        return "tasks" if regime == "lanes" and chosen != "dual" else regime

    with ExitStack() as stack:
        if coordinates is not None:
            stack.enter_context(mock.patch(f"{layout}.choose_coordinates", choose))
            for rounds_well in ("dual_rounds_well", "normal_rounds_well"):
                stack.enter_context(mock.patch(f"{layout}.{rounds_well}", lambda *_: True))
        if regime is not None:
            stack.enter_context(mock.patch(f"{layout}.choose_regime", choose_regime))
        yield
