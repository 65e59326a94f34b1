"""The base of modes that see every operation below autograd."""

from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that torch imports no compiler for.

    It would, to keep the mode from being compiled: 2 seconds and 40 MB.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
