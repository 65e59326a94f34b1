"""How the law tests run: on scratch memory full of NaN, and on one thread, unless a law is about threads."""

import pytest


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel reads before writing shows. csrc/ops reads the variable at every call."""
    monkeypatch.setenv("PYBILEVEL_POISON", "1")


@pytest.fixture(autouse=True)
def on_one_thread(one_thread: None) -> None:
    """The oracle's operations are tiny."""
