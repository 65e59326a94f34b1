"""The inner optimizers of `linear_cases`, by their names in the native registry: settings, and typical variants."""

from pybilevel import _C

_ADAM = {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 1e-1}
_RMSPROP = {"lr": 0.02, "alpha": 0.8, "eps": 1e-1}
_ADAGRAD = {"lr": 0.1, "eps": 1e-1}

VARIANTS: dict[str, dict[str, tuple[dict[str, float], dict[str, bool]]]] = {
    "sgd": {
        "plain": ({"lr": 0.2}, {}),
        "decay": ({"lr": 0.2, "weight_decay": 0.1}, {}),
        "momentum": ({"lr": 0.1, "momentum": 0.8}, {}),
        "nesterov": ({"lr": 0.1, "momentum": 0.7}, {"nesterov": True}),
        "nesterov-decay": ({"lr": 0.1, "momentum": 0.6, "weight_decay": 0.05}, {"nesterov": True}),
        "momentum-decay": ({"lr": 0.1, "momentum": 0.6, "weight_decay": 0.05}, {}),
    },
    "adam": {
        "plain": (_ADAM, {}),
        "amsgrad-decay": (_ADAM | {"weight_decay": 0.1}, {"amsgrad": True}),
    },
    "adamw": {
        "plain": (_ADAM | {"weight_decay": 0.1}, {}),
        "amsgrad": (_ADAM | {"weight_decay": 0.1}, {"amsgrad": True}),
    },
    "rmsprop": {
        "plain": (_RMSPROP, {}),
        "centered": (_RMSPROP, {"centered": True}),
        "momentum": (_RMSPROP | {"momentum": 0.6}, {}),
        "centered-momentum-decay": (_RMSPROP | {"momentum": 0.6, "weight_decay": 0.1}, {"centered": True}),
    },
    "adagrad": {
        "plain": (_ADAGRAD, {}),
        "decay": (_ADAGRAD | {"lr_decay": 0.2, "weight_decay": 0.1}, {}),
    },
}
"""Settings (the size of their values) and flags of every optimizer, by the name of the variant."""

# eps is so large that the steps contract: rounding then grows no faster than in gradient descent.

USUAL = {"sgd": "momentum", "adam": "plain", "adamw": "plain", "rmsprop": "momentum", "adagrad": "plain"}
"""A variant with buffers of every optimizer, for laws that one of them has to obey."""

RICHEST = {
    "sgd": "nesterov-decay",
    "adam": "amsgrad-decay",
    "adamw": "amsgrad",
    "rmsprop": "centered-momentum-decay",
    "adagrad": "decay",
}
"""The variant of every optimizer with the most settings."""

LINEAR = [name for name, row in _C.registry()["optimizers"].items() if row["linear"]]
"""The optimizers that run in all coordinates."""
