"""The CPU emulator of CUDA finds what it must find, and the block team agrees with plain loops on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import EMULATOR, MODES, assert_right, emulated, run_program

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")

SOUND = ["block_sum", "warp_reverse", "shuffles", "grid_reverse", "poison", "empty"]
RACES = ["missing_barrier", "missing_second_barrier", "warp_barrier_for_block", "block_barrier_for_grid"]
OVERFLOWS = {
    "shared_overflow": "heap-buffer-overflow",
    "global_overflow": "heap-buffer-overflow",
    "stack_overflow": "stack-buffer-overflow",
}
DIVERGENCES = {
    "early_exit": "thread 5 has returned from the kernel",
    "early_exit_of_warp": "thread 32 has returned from the kernel",
    "other_barrier": "but thread 32 waits in a block barrier at",
    "other_kind": "but thread 1 waits in a warp barrier at",
    "early_exit_of_block": "thread 64 has returned from the kernel",
    "grid_barrier_of_one_warp": "thread 0 waits in a grid barrier at",
    "grid_barrier_in_common_launch": "a grid barrier needs a cooperative launch",
    "partial_mask": "a shuffle must name the whole warp",
    "foreign_lane": "a shuffle reads from a lane outside the warp",
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program of rules.cpp, one for each mode."""
    folder = tmp_path_factory.mktemp("rules")
    return {mode: emulated(folder, "rules", mode, [EMULATOR / "rules.cpp"]) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", SOUND)
def test_sound_kernels_run(rules: dict[str, Path], mode: str, kernel: str) -> None:
    assert_right(rules[mode], kernel)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", DIVERGENCES)
def test_divergence_is_found(rules: dict[str, Path], mode: str, kernel: str) -> None:
    done = run_program(rules[mode], kernel)
    assert done.returncode == 66
    assert DIVERGENCES[kernel] in done.stderr


@pytest.mark.parametrize("kernel", OVERFLOWS)
def test_overflow_is_found_with_fibers(rules: dict[str, Path], kernel: str) -> None:
    done = run_program(rules["fibers"], kernel)
    assert done.returncode != 0
    assert f"AddressSanitizer: {OVERFLOWS[kernel]}" in done.stderr


@pytest.mark.parametrize("kernel", RACES)
def test_race_is_found_with_threads(rules: dict[str, Path], kernel: str) -> None:
    done = run_program(rules["threads"], kernel)
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_block_team_agrees_with_plain_loops(tmp_path: Path, mode: str) -> None:
    assert_right(emulated(tmp_path, "team", mode, [EMULATOR / "team.cpp"]))
