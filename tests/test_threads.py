"""How the CPU kernels share work among threads: see csrc/cpu/shares.hpp."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import MODES, ROOT, assert_right, emulated


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program of tests/cpu_programs, one for each set of sanitizers."""
    folder = tmp_path_factory.mktemp("shares")
    source = ROOT / "tests" / "cpu_programs" / "shares.cpp"
    return {mode: emulated(folder, "shares", mode, [], [source]) for mode in MODES}


@pytest.mark.skipif(shutil.which("g++") is None, reason="the program needs g++")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("test", ["once", "still", "order"])
def test_every_piece_of_work_is_done_once_though_a_worker_stands_still(shares, mode, test):
    assert_right(shares[mode], test)
