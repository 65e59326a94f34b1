"""Random perceptrons, solved by the fused engine and by the oracle: what every law test of them shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from linear_cases import Solution, total
from linear_leaves import arranged, setting_shape, stored_shape
from linear_optimizers import VARIANTS
from optimizer_cases import build, optimizers
from torch import Tensor
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel import _C
from pybilevel.engine import oracle

ACTIVATIONS = _C.registry()["activations"]
LOSSES = {"squared_error": ("soft", "labels"), "cross_entropy": ("labels", "soft")}
"""The losses, and the kinds of targets of each: integer classes, or [n, c] that may carry gradients."""

REGIMES = ("tasks", "rows")


@dataclass(frozen=True)
class MlpCase:
    """One perceptron and its outer objective, up to the random numbers; see `linear_cases.Case`.

    Attributes:
        shared: whether the initial parameters leave out the task dimensions.
        objective: "state" (w_T and the buffers) or "ho" (the loss of outer rows).
        device: where it runs; the numbers are the same on all.
    """

    loss: str = "squared_error"
    targets: str = "soft"
    activation: str = "tanh"
    optimizer: str = "sgd"
    variant: str = "momentum"
    tasks: tuple[int, ...] = (3,)
    n: int = 7
    m: int = 5
    sizes: tuple[int, ...] = (3, 9, 5, 2)
    steps: int = 4
    reduction: str = "mean"
    forms: tuple[str, ...] = ("both",)
    l2: str = "task"
    weights: str = "random"
    shared: bool = False
    strides: str = "contiguous"
    objective: str = "ho"
    dtype: torch.dtype = torch.float64
    seed: int = 0
    device: str = "cpu"

    def inputs(self) -> dict[str, Tensor]:
        """Fresh leaves that ask for gradients, by name; those that this objective uses."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(shape: tuple[int, ...], low: float | None = None, high: float = 1.0) -> Tensor:
            # drawn in float32, so that every dtype gets the same numbers
            stored = stored_shape(self.strides, shape)
            if low is None:
                values = torch.randn(stored, generator=generator) * high
            else:
                values = torch.rand(stored, generator=generator) * (high - low) + low
            return values.to(self.dtype).to(self.device).requires_grad_()

        found: dict[str, Tensor] = {}
        for prefix, rows in (("", self.n), *([("query_", self.m)] if self.objective == "ho" else [])):
            found[prefix + "x"] = draw((*self.tasks, rows, self.sizes[0]))
            if self.targets == "soft":
                low = 0.0 if self.loss == "cross_entropy" else None
                found[prefix + "y"] = draw((*self.tasks, rows, self.sizes[-1]), low)
            if self.weights != "none":
                found[prefix + "weights"] = draw((*self.tasks, rows), 0.1, 1.5)
                if self.weights == "zeros":
                    mask = torch.rand(found[prefix + "weights"].shape, generator=generator) < 0.4
                    found[prefix + "weights"].detach()[mask] = 0.0
        if self.l2 != "number":
            found["l2"] = draw(self.tasks if self.l2 == "task" else (), 0.02, 0.2)
        for layer, (i, o) in enumerate(pairwise(self.sizes), start=1):
            tasks = () if self.shared else self.tasks
            found[f"weight{layer}"] = draw((*tasks, i, o), None, i**-0.5)
            found[f"bias{layer}"] = draw((*tasks, o), None, 0.3)
        scale = 1.0 / self.n if self.reduction == "sum" else 1.0
        for i, (name, size) in enumerate(VARIANTS[self.optimizer][self.variant][0].items()):
            size *= scale if name == "lr" else 1.0
            shape = setting_shape(self.forms[i % len(self.forms)], self)  # type: ignore[arg-type]
            if shape is not None:
                found[name] = draw(shape, 0.7 * size, 1.1 * size)
        return found


class Built:
    """The problem, the outer problem, w0 and the optimizer of a case on its leaves."""

    def __init__(self, case: MlpCase, leaves: dict[str, Tensor]) -> None:
        self.case, self.leaves = case, leaves
        numbers, self.flags = VARIANTS[case.optimizer][case.variant]
        self.settings: dict[str, Any] = {
            name: self._view(name, setting_shape(case.forms[i % len(case.forms)], case), size)
            for i, (name, size) in enumerate(numbers.items())
        }
        self.w0 = [
            tuple(
                self._view(f"{kind}{layer}", (*(() if case.shared else case.tasks), *shape), None)
                for kind, shape in (("weight", (i, o)), ("bias", (o,)))
            )
            for layer, (i, o) in enumerate(pairwise(case.sizes), start=1)
        ]
        self.l2 = self._view("l2", case.tasks if case.l2 == "task" else (), 0.05)
        self.problem = self._problem("", case.n)
        self.outer = self._problem("query_", case.m) if case.objective == "ho" else None

    def _view(self, name: str, shape: tuple[int, ...] | None, otherwise: Any) -> Any:
        leaf = self.leaves.get(name)
        return otherwise if leaf is None or shape is None else arranged(self.case.strides, leaf)(shape)

    def _problem(self, prefix: str, rows: int) -> pb.MLP:
        case = self.case
        x = self._view(prefix + "x", (*case.tasks, rows, case.sizes[0]), None)
        if case.targets == "soft":
            y = self._view(prefix + "y", (*case.tasks, rows, case.sizes[-1]), None)
        else:
            generator = torch.Generator().manual_seed(case.seed + rows)
            y = torch.randint(case.sizes[-1], (*case.tasks, rows), generator=generator).to(case.device)
        return pb.MLP(
            x,
            y,
            sizes=case.sizes,
            activation=case.activation,
            loss=case.loss,
            weights=self._view(prefix + "weights", (*case.tasks, rows), None),
            l2=self.l2,
            reduction=case.reduction,
        )

    def solver(self, settings: dict[str, Any] | None = None) -> Any:
        """The optimizer as the package has it, with its own settings or others."""
        kind = optimizers()[self.case.optimizer]
        return build(kind, **(self.settings if settings is None else settings), **self.flags)

    def buffers(self, state: pb.State) -> dict[str, Tensor]:
        """Those of a state that have a value a parameter."""
        names = self.solver().buffer_names
        return {
            f"buffer {name} {i}": b
            for i, leaf in enumerate(state.buffers)
            for name, b in zip(names, leaf, strict=True)
            if name != "step"
        }

    def run(self, **options: Any) -> dict[str, Tensor]:
        """The results of an engine, the fused one unless the options say another, through the public calls."""
        options = {"steps": self.case.steps, "optimizer": self.solver(), "backend": "fused", **options}
        if self.outer is not None:
            return {"loss": pb.ho_objective(self.problem, self.outer, self.w0, **options)}
        w, state = pb.unroll(self.problem, self.w0, return_state=True, **options)
        return _named(w) | self.buffers(state)

    def oracle(self, truncate: int | None = None) -> dict[str, Tensor]:
        """The results of the plain loop, in the dtype of the case."""
        case, solver = self.case, self.solver()
        w, buffers = oracle.unroll(
            self.problem,
            self.problem.initial(self.problem.check_w0(self.w0)),
            steps=case.steps,
            rule=case.optimizer,
            truncate=truncate,
            **self.settings,
            **self.flags,
        )
        if self.outer is not None:
            return {"loss": self.outer(w)}
        names = [name for name in solver.buffer_names if name != "step"]
        leaves = {name: pytree.tree_leaves(buffers[name]) for name in names}
        return _named(w) | {
            f"buffer {name} {i}": leaves[name][i] for i in range(len(self.w0) * 2) for name in names
        }


def _named(w: Any) -> dict[str, Tensor]:
    return {f"w{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(w))}


def solve(case: MlpCase, **options: Any) -> Solution:
    """Values and every gradient by the fused engine (or by another `backend`); none of them may be None."""
    leaves = case.inputs()
    values = Built(case, leaves).run(**options)
    found = [bar.cpu() for bar in torch.autograd.grad(total(values), list(leaves.values()))]
    return Solution({k: v.detach().cpu() for k, v in values.items()}, dict(zip(leaves, found, strict=True)))


def plain(case: MlpCase, truncate: int | None = None) -> Solution:
    """Values and every gradient by autograd through the plain loop."""
    leaves = case.inputs()
    values = Built(case, leaves).oracle(truncate)
    found = torch.autograd.grad(
        total(values), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return Solution({k: v.detach() for k, v in values.items()}, dict(zip(leaves, found, strict=True)))


@lru_cache(256)  # regimes and schedules share it
def exact(case: MlpCase, truncate: int | None = None) -> Solution:
    """The plain loop in float64 on the CPU, on the same numbers."""
    return plain(dataclasses.replace(case, dtype=torch.float64, device="cpu"), truncate)


@contextmanager
def forced(regime: str) -> Iterator[None]:
    """Within it the fused engine runs perceptrons in this regime."""
    with mock.patch("pybilevel.engine.perceptron.choose_regime", lambda problem: regime):
        yield
