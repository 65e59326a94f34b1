"""What every test shares: reproducible data, poisoned memory, the devices of this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch.utils import deterministic

from pybilevel import _C
from pybilevel.engine import recipe

settings.register_profile("pybilevel", deadline=None, derandomize="CI" in os.environ, max_examples=25)
settings.load_profile("pybilevel")


def cuda_works() -> bool:
    """Whether the CUDA kernels are compiled, torch has CUDA, and a device is there."""
    return bool(_C.build_info()["cuda"]) and torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where no GPU can run them."""
    if cuda_works():
        return
    skip = pytest.mark.skip(reason="needs a CUDA build of pybilevel and of torch, and a device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """The same random numbers in every test, and NaN in every fresh allocation.

    A kernel that reads or returns memory it has not written then fails loudly instead of passing by luck.
    """
    torch.manual_seed(0)
    filled = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        yield
    torch.use_deterministic_algorithms(False)
    deterministic.fill_uninitialized_memory = filled


@pytest.fixture(autouse=True)
def no_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is laid out anew, since tests change the rules of that."""
    monkeypatch.setattr(recipe, "KEPT", 0)


@pytest.fixture
def recipes(no_recipes: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are remembered, those of this test only."""
    monkeypatch.setattr(recipe, "KEPT", 256)
    recipe.forget()
    yield
    recipe.forget()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Fastest where operations are tiny: on a busy machine, waiting for a second thread costs 100 times their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device the fused path supports: one test, run on each that this machine has."""
    return torch.device(request.param)
