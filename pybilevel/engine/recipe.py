"""What calls of one form share, remembered: a training loop makes the same call again and again, with other numbers.

A *form* is all that checks, layout and plan of a call depend on: what its problems are, with shapes, dtypes, devices
and wishes for gradients in the place of tensors, and the arguments of the call. All of it but the tensors is a key
here; the operators look at the tensors, and keep what was made of the first call of a form (`ops/remembered.hpp`). A
call of a form that is remembered skips everything between its data and the operator, which takes longer than the
operator itself where tasks are few or small. Checks that look at numbers are not skipped: problems and optimizers make
them when they are built, and `again` where there are no problems.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from pybilevel.checks import LOW_PRECISION
from pybilevel.engine.call import Call
from pybilevel.engine.data import Data, given_inputs
from pybilevel.engine.itinerary import Itinerary, tensors_are_plain
from pybilevel.engine.native import has_kernel
from pybilevel.methods import Reverse
from pybilevel.ops import OPTIMIZERS
from pybilevel.ops.node import Outcome, by_type, forget_unrolls, remember_unroll, unroll_again
from pybilevel.optimizers.settings import resolve

KEPT = 256
"""How many forms are remembered, the latest; 0: none."""

LONGEST = 1 << 14
"""Ops of a plan that is remembered, 4 bytes each: longer calls gain nothing."""

DEFAULTS = {"memory": "auto", "backend": "auto", "precision": "fp32", "method": Reverse()}
"""The arguments of `unroll` that a call with a form may have, beside problems, w0, steps and optimizer."""

_NAMES = {"steps", "optimizer", *DEFAULTS}

_TENSORS = {Tensor, Parameter}
_PLAIN = {*_TENSORS, type(None)}

_families: dict[tuple[Any, ...], int] = {}
_numbers = count()
_lock = Lock()


class CallForm(NamedTuple):
    """The form of a call: a key, and the tensors whose looks complete it.

    Attributes:
        key: all that is no tensor.
        optimizer: the native inner optimizer.
        tensors, leaves: as `unroll_node` takes them.
    """

    key: tuple[Any, ...]
    optimizer: str
    tensors: Sequence[Tensor | None]
    leaves: Sequence[Tensor]


def form_of(inner: Data, outer: Data | None, w0: Any, options: Mapping[str, Any]) -> CallForm | None:
    """The form of a call. None: a call without one, of which nothing is remembered.

    `options` are those of `unroll`, or some of them. A form says nothing about whether a call is right.
    """
    optimizer, steps = options["optimizer"], options["steps"]
    if not (type(steps) is int and has_kernel(optimizer) and _are_usual(options)):
        return None
    if torch.compiler.is_compiling() or not tensors_are_plain():
        return None
    if getattr(optimizer, "starts_above_zero", False):
        return None
    native, memory = OPTIMIZERS[optimizer.name], options.get("memory", DEFAULTS["memory"])
    key = (
        inner.kind,
        inner.traits,
        None if outer is None else (outer.kind, outer.traits),
        type(w0),
        type(optimizer),
        native.bits(optimizer),
        steps,
        type(memory),  # 1 is equal to True
        memory,
        options.get("backend", DEFAULTS["backend"]),
        options.get("precision", DEFAULTS["precision"]),
    )
    settings = optimizer.settings()
    try:
        hash(key)
        uniform = {name: _uniform(name, value, steps, inner.x) for name, value in settings.items()}
        tensors = given_inputs(inner, outer, None, None, native.ordered(uniform))
    except (AttributeError, TypeError, ValueError):  # it is wrong, which its checks will say, or has no form
        return None
    leaves, dtype = _leaves(w0), inner.x.dtype
    if not (_PLAIN.issuperset(map(type, tensors)) and _are_plain(leaves)):
        return None
    if dtype in LOW_PRECISION or any(leaf.dtype is not dtype for leaf in leaves):  # to be cast
        return None
    return CallForm(key, optimizer.name, tensors, leaves)


def again(form: CallForm, look: bool, objective: bool) -> Outcome | None:
    """What a call gives whose form is remembered; None if it is not, or if `look` finds a label out of range."""
    family = _families.get(form.key)
    if family is None:
        return None
    return unroll_again(form.tensors, form.leaves, form.optimizer, family, look, objective)


def remember(call: Call, itinerary: Itinerary, buffers: Tensor | None, constants: tuple[Any, ...]) -> None:
    """Keep what was made of a call that has a form, unless another one of that form could get something else.

    Such are calls whose plan hangs on free memory or on the number of threads, and those that start from `buffers`.
    `constants` are in the order of the operator's schema.
    """
    form, one_way = call.form, itinerary.reversed == 0
    settled = one_way or (itinerary.keep if call.memory == "auto" else not isinstance(call.memory, int))
    if form is None or buffers is not None or not settled or itinerary.ops.numel() > LONGEST or not KEPT:
        return
    with _lock:
        while len(_families) >= KEPT:
            _families.pop(next(iter(_families)))
        family = _families.setdefault(form.key, next(_numbers))
    remember_unroll(form.tensors, form.leaves, family, KEPT, *by_type(*constants))


def forget() -> None:
    """Forget all forms."""
    with _lock:
        _families.clear()
    forget_unrolls()


def _are_usual(options: Mapping[str, Any]) -> bool:
    """Whether there is no option but those of DEFAULTS, and the method is theirs."""
    method = options.get("method", DEFAULTS["method"])
    return options.keys() <= _NAMES and (method is DEFAULTS["method"] or method == DEFAULTS["method"])


def _are_plain(tensors: Sequence[Any]) -> bool:
    """Whether all are tensors, and of no class of their own."""
    return _TENSORS.issuperset(map(type, tensors))


def _uniform(name: str, value: Any, steps: int, x: Tensor) -> Tensor:
    """`resolve`, which on a CPU makes a number a tensor only once: none is written to."""
    if type(value) is float and x.is_cpu:
        return _number(value, x.dtype, x.device)
    return resolve(name, value, steps, x.shape[:-2], x.dtype, x.device)


@lru_cache(KEPT)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def _leaves(w0: Any) -> list[Any]:
    """The leaves of w0; of lists of pairs, as perceptrons have, without torch's general function."""
    if w0 is None:
        return []
    if isinstance(w0, Tensor):
        return [w0]
    if type(w0) is list and {*map(type, w0)} == {tuple}:
        flat = [leaf for layer in w0 for leaf in layer]
        if _are_plain(flat):
            return flat
    return pytree.tree_leaves(w0)
