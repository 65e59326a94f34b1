"""How the law tests run: on scratch memory full of NaN, and on one thread, unless a law is about threads."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel reads before writing shows. csrc/ops reads the variable at every call."""
    monkeypatch.setenv("PYBILEVEL_POISON", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle's operations are tiny: on a busy machine, waiting for a second thread costs 100 times their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
