"""Every inner optimizer with settings of every kind: what the laws of optimizers enumerate.

A public optimizer without an entry fails `test_every_optimizer_has_cases`.
"""

from __future__ import annotations

from typing import Any

import torch

import pybilevel as pb

_ADAM = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
_RMSPROP = {"lr": 0.05, "alpha": 0.9, "eps": 1e-3}
_ADAGRAD = {"lr": 0.1, "eps": 1e-3}

VARIANTS: dict[str, dict[str, tuple[dict[str, float], dict[str, bool]]]] = {
    "sgd": {
        "plain": ({"lr": 0.1}, {}),
        "decay": ({"lr": 0.1, "weight_decay": 0.3}, {}),
        "momentum": ({"lr": 0.1, "momentum": 0.9}, {}),
        "nesterov-decay": ({"lr": 0.1, "momentum": 0.6, "weight_decay": 0.3}, {"nesterov": True}),
    },
    "adam": {
        "plain": (_ADAM, {}),
        "decay": (_ADAM | {"weight_decay": 0.3}, {}),
        "amsgrad": (_ADAM | {"weight_decay": 0.1}, {"amsgrad": True}),
    },
    "adamw": {
        "plain": (_ADAM | {"weight_decay": 0.3}, {}),
        "amsgrad": (_ADAM | {"weight_decay": 0.1}, {"amsgrad": True}),
    },
    "rmsprop": {
        "plain": (_RMSPROP, {}),
        "momentum": (_RMSPROP | {"momentum": 0.8}, {}),
        "centered": (_RMSPROP, {"centered": True}),
        "everything": (_RMSPROP | {"momentum": 0.6, "weight_decay": 0.2}, {"centered": True}),
    },
    "adagrad": {
        "plain": (_ADAGRAD, {}),
        "everything": (_ADAGRAD | {"lr_decay": 0.2, "weight_decay": 0.3}, {}),
    },
}
"""The settings (numbers) and flags of every optimizer, by the name of the variant."""

CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def optimizers() -> dict[str, type]:
    """The public optimizers by name."""
    public = (getattr(pb, name) for name in pb.__all__ if name != "Optimizer")
    return {kind.name: kind for kind in public if isinstance(kind, type) and hasattr(kind, "step")}


def build(kind: type, **settings: Any) -> Any:
    """An optimizer, ours or torch's, from settings by name: beta1 and beta2 are one argument in both."""
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    return kind(**settings)


def theirs(name: str, parameter: torch.Tensor, **settings: Any) -> torch.optim.Optimizer:
    """torch's optimizer of one parameter."""
    kind = getattr(torch.optim, optimizers()[name].__name__)
    return build(lambda **options: kind([parameter], **options), **settings)


def resolved(optimizer: Any, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The settings of an optimizer built from numbers, as `step` takes them."""
    return {name: torch.tensor(value, dtype=dtype) for name, value in optimizer.settings().items()}
