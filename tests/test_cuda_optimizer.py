"""The CUDA kernels of an optimizer's step, without a GPU: on the emulator under sanitizers, and through nvcc."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import EMULATOR, MODES, ROOT, assert_no_spills, assert_right, cpu_reference, emulated, nvcc

CUDA = ROOT / "csrc" / "cuda"


cpu_kernels = cpu_reference("optimizer")


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("mode", MODES)
def test_kernels_agree_with_the_cpu_under_sanitizers(tmp_path: Path, cpu_kernels: Path, mode: str) -> None:
    """Every optimizer, with all of its settings and with few: all results to rounding, and twice the same bits."""
    sources = [CUDA / f"optimizer_{precision}.cu" for precision in ("double", "float")]
    assert_right(emulated(tmp_path, "optimizer", mode, sources, [EMULATOR / "optimizer.cpp", cpu_kernels]))


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("precision", ["float", "double"])
def test_kernels_do_not_spill(tmp_path: Path, precision: str) -> None:
    """The step, its pullback, and the sums of the settings' cotangents."""
    assert_no_spills(CUDA / f"optimizer_{precision}.cu", "optimizer_\\w+", 3, tmp_path)
