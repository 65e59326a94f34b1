"""A counter of floating point operations, as torch counts them: products, convolutions and attention."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.flop_counter import flop_registry

from pybilevel.engine.dispatch import Counting


class FlopCount(Counting):  # type: ignore[no-untyped-call]
    """Within it, `total` counts the operations of every call.

    torch's own FlopCounterMode also hooks the modules that are called, which fails under torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
