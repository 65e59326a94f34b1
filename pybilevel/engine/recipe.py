"""What calls of one form share, remembered: a training loop makes the same call again and again, with other numbers.

A *form* is all that checks, layout and plan of a call depend on: the attributes of its problems, with shapes, dtypes,
devices and wishes for gradients in the place of tensors, and the arguments of the call. A *recipe* is what was made of
them the first time. A call of a form that has one skips everything between its problems and the operator, which takes
longer than the operator itself where tasks are few or small. Checks that look at numbers are not skipped: problems and
optimizers make them when they are built.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.itinerary import Itinerary, tensors_are_plain
from pybilevel.engine.layout import given_inputs
from pybilevel.engine.native import has_kernel
from pybilevel.methods import Reverse
from pybilevel.ops import OPTIMIZERS, LinearResults, NativeOptimizer
from pybilevel.ops.node import by_type, unroll_node
from pybilevel.optimizers.settings import resolve
from pybilevel.problems import Problem

KEPT = 256
"""How many recipes are kept, the latest; 0: none."""

LONGEST = 1 << 14
"""Ops of a plan that is kept in a recipe, which takes 4 bytes an op and 3 kB: longer calls gain nothing."""

DEFAULTS = {"memory": "auto", "backend": "auto", "precision": "fp32", "method": Reverse()}
"""The arguments of `unroll` that a call with a form may have, beside problems, w0, steps and optimizer."""

_NAMES = {"steps", "optimizer", *DEFAULTS}

_recipes: dict[tuple[Any, ...], "Recipe"] = {}


class CallForm(NamedTuple):
    """The form of a call, and what was taken out of the call to tell it.

    Attributes:
        key: the form. Calls of equal keys differ in numbers only.
        leaves: the tensors of w0.
        settings: of the optimizer, by name.
    """

    key: tuple[Any, ...]
    leaves: Sequence[Tensor]
    settings: Mapping[str, Any]


class Recipe(NamedTuple):
    """A call but for its tensors.

    Attributes:
        native: the inner optimizer.
        steps: T.
        constants: what `unroll_node` takes beside tensors.
    """

    native: NativeOptimizer
    steps: int
    constants: tuple[Any, ...]

    def run(self, form: CallForm, inner: Problem, outer: Problem | None) -> LinearResults:
        """The operator on the tensors of a call of this form."""
        like = self.steps, inner.tasks, inner.dtype, inner.device
        settings = {name: resolve(name, value, *like) for name, value in form.settings.items()}
        tensors = given_inputs(inner, outer, None, None, self.native.ordered(settings))
        return unroll_node(tensors, form.leaves, *self.constants)


def form_of(inner: Any, outer: Problem | None, w0: Any, options: Mapping[str, Any]) -> CallForm | None:
    """The form of a call. None: a call without one, of which nothing is remembered.

    `options` are those of `unroll`, or some of them. A form says nothing about whether a call is right.
    """
    if torch.compiler.is_compiling() or not isinstance(inner, Problem):
        return None
    optimizer, steps, *others = options["optimizer"], options["steps"], *(options.keys() - _NAMES)
    usual = (
        not others and type(steps) is int and options.get("method", DEFAULTS["method"]) == DEFAULTS["method"]
    )
    if not usual or not has_kernel(optimizer) or getattr(optimizer, "starts_above_zero", False):
        return None
    settings, native = optimizer.settings(), OPTIMIZERS[optimizer.name]
    leaves = [] if w0 is None else [w0] if isinstance(w0, Tensor) else pytree.tree_leaves(w0)
    if any(
        getattr(one, "dtype", None) is not inner.dtype for one in (inner.x, *leaves)
    ):  # to be cast, or wrong
        return None
    try:
        key = (
            *_of_problem(inner),
            *(() if outer is None else _of_problem(outer)),
            (type(w0), *map(_of, leaves)),
            (type(optimizer), native.bits(optimizer), *settings, *map(_of, settings.values())),
            (steps, *(_of(options.get(name, DEFAULTS[name])) for name in ("memory", "backend", "precision"))),
            torch.is_grad_enabled(),
        )
        hash(key)
    except TypeError:  # a tensor of another kind, or a value that cannot be remembered
        return None
    return CallForm(key, leaves, settings) if tensors_are_plain() else None


def recall(form: CallForm) -> Recipe | None:
    """The recipe of a form, if a call of it was remembered."""
    return _recipes.get(form.key)


def remember(call: Call, itinerary: Itinerary, buffers: Tensor | None, constants: tuple[Any, ...]) -> None:
    """Keep what was made of a call that has a form, unless another one of that form could get something else.

    Such are calls whose plan hangs on free memory or on the number of threads, and those that start from `buffers`.
    `constants` are in the order of the operator's schema.
    """
    one_way = itinerary.reversed == 0
    settled = one_way or (itinerary.keep if call.memory == "auto" else not isinstance(call.memory, int))
    if call.form is None or buffers is not None or not settled or itinerary.ops.numel() > LONGEST or not KEPT:
        return
    while len(_recipes) >= KEPT:
        _recipes.pop(next(iter(_recipes)), None)
    _recipes[call.form.key] = Recipe(OPTIMIZERS[call.optimizer.name], call.steps, by_type(*constants))


def forget() -> None:
    """Drop all recipes."""
    _recipes.clear()


def _of_problem(problem: Problem) -> tuple[Any, ...]:
    return (
        type(problem),
        *map(_of, (problem.x, problem.y, problem.weights, problem.l2_given)),
        (problem.regularised, problem.reduction, problem.num_classes, problem.loss),
        *[getattr(problem, name) for name in problem.formative],
    )


def _of(value: Any) -> Any:
    if type(value) in (Tensor, Parameter):
        return value.shape, value.dtype, value.device, value.requires_grad
    if isinstance(value, Tensor):
        raise TypeError
    return float if isinstance(value, float) else (type(value), value)  # 1 == True
