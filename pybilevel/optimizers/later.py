"""The optimizers whose names are settled and whose mathematics comes with a later version."""

from typing import Any, ClassVar


class _Later:
    name: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"pb.{type(self).__name__} is not in this version: use pb.SGD")


class Adam(_Later):
    """Adam (Kingma & Ba 2015)."""

    name = "adam"


class AdamW(_Later):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name = "adamw"


class RMSprop(_Later):
    """RMSprop (Tieleman & Hinton 2012)."""

    name = "rmsprop"


class Adagrad(_Later):
    """Adagrad (Duchi et al. 2011)."""

    name = "adagrad"
