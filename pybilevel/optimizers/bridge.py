"""From torch.optim to our optimizers: the settings of an instance, and the parameters that w0 stands for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.optimizers.adagrad import Adagrad
from pybilevel.optimizers.adam import Adam
from pybilevel.optimizers.adamw import AdamW
from pybilevel.optimizers.base import Buffers, Optimizer
from pybilevel.optimizers.rmsprop import RMSprop
from pybilevel.optimizers.sgd import SGD

_ADAM = ("lr", "betas", "eps", "weight_decay")
_KNOWN: dict[type[torch.optim.Optimizer], tuple[Callable[..., Optimizer], tuple[str, ...]]] = {
    torch.optim.SGD: (SGD, ("lr", "momentum", "weight_decay")),
    torch.optim.Adam: (Adam, _ADAM),
    torch.optim.AdamW: (AdamW, _ADAM),
    torch.optim.RMSprop: (RMSprop, ("lr", "alpha", "eps", "weight_decay", "momentum")),
    torch.optim.Adagrad: (Adagrad, ("lr", "lr_decay", "weight_decay", "eps")),
}
"""The counterpart of each, and what may differ between parameters; the options below are the same for all."""

_WHOLE = ("nesterov", "amsgrad", "centered", "initial_accumulator_value")
_MUST_BE_ZERO = ("dampening", "maximize")


def from_torch(optimizer: torch.optim.Optimizer, w0: Any = None, **replaced: Any) -> Optimizer:
    """Our optimizer with the settings of a torch.optim instance, which is not changed.

        torch.optim.SGD, Adam, AdamW, RMSprop, Adagrad -> pb.SGD, Adam, AdamW, RMSprop, Adagrad

    A setting that differs between parameter groups becomes one with a value a parameter, shaped like w0; a tensor
    (`lr` may be one) is kept, and differentiated. `State.from_torch` takes over parameters and buffers.

    Args:
        optimizer: the settings of now: of a learning rate scheduler only the current value is seen (write the rates as
            a tensor [steps] instead).
        w0: needed where parameter groups differ. Its leaves are parameters of `optimizer`; or other tensors, then one
            for each of its parameters, in their order.
        replaced: settings to use instead, in the names of our class, such as `lr=` a tensor to learn.

    Raises:
        TypeError: `optimizer` is no torch.optim instance, or one without a counterpart here.
        ValueError: it uses an option that ours does not have (dampening, maximize), parameter groups differ in an
            option that is one for all, they differ and w0 is None, or w0 does not fit its parameters.
    """
    kind = type(optimizer)
    if kind not in _KNOWN:
        accepted = ", ".join(f"torch.optim.{known.__name__}" for known in _KNOWN)
        raise TypeError(f"optimizer must be one of {accepted}, got {kind.__name__}")
    ours, names = _KNOWN[kind]
    groups = optimizer.param_groups
    for option in _MUST_BE_ZERO:
        for group in groups:
            if group.get(option):
                raise ValueError(
                    f"optimizer has {option}={group[option]}, which pybilevel does not do: leave it out"
                )
    if _common("decoupled_weight_decay", groups):
        ours = AdamW
    options = {name: _common(name, groups) for name in _WHOLE if name in groups[0]}
    options |= {name: _setting(name, optimizer, w0) for name in names if name not in replaced}
    return ours(**(options | replaced))


def parameters_of(optimizer: torch.optim.Optimizer, w0: Any) -> list[Tensor]:
    """The parameter of `optimizer` that each leaf of w0 is, or stands for by its place.

    Raises:
        ValueError: some leaves are parameters of `optimizer` and some are not, or none is, and number or shapes differ.
    """
    leaves = pytree.tree_leaves(w0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ours = {id(p) for p in parameters}
    found = [id(leaf) in ours for leaf in leaves]
    if all(found):
        return leaves
    if any(found):
        raise ValueError(
            f"leaf {found.index(False)} of w0 is no parameter of optimizer but leaf {found.index(True)} is: "
            "make all of them its parameters, or none"
        )
    shapes = [[list(x.shape) for x in tensors] for tensors in (leaves, parameters)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"w0 has the shapes {shapes[0]} but the parameters of optimizer have {shapes[1]}: give its own parameters, "
            "or one tensor for each, in their order"
        )
    return parameters


def taken_buffers(ours: Any, w: Tensor, state: Mapping[str, Any]) -> Buffers:
    """Our buffers of one parameter w from torch's state of it, copied; those it has not are as before the first step.

    ours: what `from_torch` gave.
    """
    fresh = zip(ours.buffer_names, ours.init(w), strict=True)
    return tuple(start if state.get(name) is None else _like(state[name], start) for name, start in fresh)


def give_buffers(
    ours: Any, optimizer: torch.optim.Optimizer, parameter: Tensor, buffers: Buffers, step: int
) -> None:
    """Sets torch's state of one of its parameters from our buffers; `step` is its count where we keep none."""
    state = optimizer.state[parameter]
    found = dict(zip(ours.buffer_names, buffers, strict=True))
    if not isinstance(optimizer, torch.optim.SGD):
        found.setdefault("step", torch.tensor(float(step)))
    (group,) = (g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    for name, value in found.items():
        moved = value.detach().clone()
        if name == "step":
            on_device = group.get("capturable") or group.get("fused")
            moved = moved.to(parameter.device if on_device else "cpu")
        state[name] = moved


def _like(value: Any, start: Tensor) -> Tensor:
    return torch.as_tensor(value).detach().to(device=start.device, dtype=start.dtype, copy=True)


def _common(name: str, groups: Sequence[dict[str, Any]]) -> Any:
    values = [group.get(name) for group in groups]
    if any(value != values[0] for value in values):
        raise ValueError(
            f"parameter groups have {name} = {', '.join(map(str, values))}: it must be the same in all, make an "
            "optimizer and an unroll for each"
        )
    return values[0]


def _setting(name: str, optimizer: torch.optim.Optimizer, w0: Any) -> Any:
    if name == "betas":
        return tuple(
            _per_group([g["betas"][i] for g in optimizer.param_groups], name, optimizer, w0) for i in (0, 1)
        )
    return _per_group([group[name] for group in optimizer.param_groups], name, optimizer, w0)


def _per_group(values: list[Any], name: str, optimizer: torch.optim.Optimizer, w0: Any) -> Any:
    """One value if all groups have the same, else a pytree like w0."""
    values = [v.reshape(()) if isinstance(v, Tensor) else v for v in values]
    first = values[0]
    if all(v is first if isinstance(v, Tensor) or isinstance(first, Tensor) else v == first for v in values):
        return first
    if w0 is None:
        raise ValueError(
            f"parameter groups have {name} = {', '.join(map(str, values))}: give w0 too, so that each parameter gets "
            "its own"
        )
    groups = zip(values, optimizer.param_groups, strict=True)
    of = {id(p): value for value, group in groups for p in group["params"]}
    chosen = [of[id(p)] for p in parameters_of(optimizer, w0)]
    return pytree.tree_unflatten(chosen, pytree.tree_structure(w0))
