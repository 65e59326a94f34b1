"""The CUDA kernels of the perceptrons, without a GPU: on the emulator under sanitizers, and through nvcc."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import EMULATOR, MODES, ROOT, assert_no_spills, assert_right, cpu_reference, emulated, nvcc
from mlp_cases import LOSSES

CUDA = ROOT / "csrc" / "cuda"


cpu_kernels = cpu_reference("mlp")


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("mode", MODES)
def test_kernels_agree_with_the_cpu_under_sanitizers(tmp_path: Path, cpu_kernels: Path, mode: str) -> None:
    """Every result and cotangent to rounding; the same bits under another plan and with scratch elsewhere."""
    sources = [CUDA / f"mlp_{precision}.cu" for precision in ("double", "float")]
    assert_right(emulated(tmp_path, "mlp", mode, sources, [EMULATOR / "mlp.cpp", cpu_kernels]))


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("precision", ["float", pytest.param("double", marks=pytest.mark.slow)])
def test_kernels_do_not_spill(tmp_path: Path, precision: str) -> None:
    """One kernel a loss and direction, for all activations and optimizers."""
    assert_no_spills(CUDA / f"mlp_{precision}.cu", "mlp", 2 * len(LOSSES), tmp_path)
