"""The optimizer protocol: the paper's dynamics Phi, for one parameter tensor, as a pure function."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Buffers = tuple[Tensor, ...]


@runtime_checkable
class Optimizer(Protocol):
    """What the engine asks of an inner optimizer; write these for one of your own.

    `step` must be pure: no in-place changes, no state on self. All of it is differentiated, settings included.
    """

    @property
    def name(self) -> str:
        """The name in the registry of native optimizers (anything else: the generic engine runs it)."""
        ...

    def settings(self) -> dict[str, Any]:
        """The differentiable settings by name, in a fixed order; values in the grammar of `settings.resolve`."""
        ...

    def init(self, w: Tensor) -> Buffers:
        """The buffers (momentum, second moments, ...) of one parameter tensor before the first step."""
        ...

    def step(
        self, w: Tensor, g: Tensor, buffers: Buffers, settings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Buffers]:
        """One step for one parameter tensor: the new parameter and buffers.

        Args:
            w: the parameter.
            g: the gradient of the inner loss, the shape of `w`.
            buffers: what `init` or the step before gave.
            settings: name -> the value of this step, broadcastable to `w`.
        """
        ...
