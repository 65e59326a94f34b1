"""The law tests run on scratch memory full of NaN: what a kernel reads before writing shows."""

import pytest


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """csrc/ops reads the variable at every call."""
    monkeypatch.setenv("PYBILEVEL_POISON", "1")
