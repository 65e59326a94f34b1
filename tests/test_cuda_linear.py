"""The CUDA kernels of the linear problems, without a GPU: on the emulator under sanitizers, and through nvcc."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import (
    EMULATOR,
    MODES,
    ROOT,
    assert_no_spills,
    assert_right,
    cpu_reference,
    emulated,
    nvcc,
)
from linear_optimizers import LINEAR

from pybilevel import _C

CUDA = ROOT / "csrc" / "cuda"
DUAL = [pair for pair in _C.registry()["problems"] if pair[1] == "dual"]
ANY = [
    pair for pair in _C.registry()["problems"] if pair[1] == "primal"
]  # one kernel for all that are not linear
PER_SOURCE = 2 * (len(_C.registry()["problems"]) * len(LINEAR) + len(ANY))  # two directions
KERNELS = {
    "linear": PER_SOURCE,
    "linear_grid": PER_SOURCE,
    # up to 5 or 10 classes, with or without a momentum buffer
    "linear_small": 2 * len(DUAL) * len(LINEAR) * 2 * 2,
}


cpu_kernels = cpu_reference("linear")


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("mode", MODES)
def test_kernels_agree_with_the_cpu_under_sanitizers(tmp_path: Path, cpu_kernels: Path, mode: str) -> None:
    """Every result and cotangent to rounding; the same bits under another plan and with scratch elsewhere."""
    sources = (
        [CUDA / f"linear{kernel}_double.cu" for kernel in ("", "_small", "_grid")],
        [EMULATOR / "linear.cpp", cpu_kernels],
    )
    assert_right(emulated(tmp_path, "linear", mode, *sources))


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_rounded_products_are_as_exact_as_they_say(tmp_path: Path) -> None:
    """Tensor cores, emulated: single products and a whole task at each precision against float64, rows anywhere."""
    assert_right(emulated(tmp_path, "precision", "fibers", [EMULATOR / "precision.cpp"]))


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("precision", ["float", pytest.param("double", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_do_not_spill(tmp_path: Path, kernel: str, precision: str) -> None:
    """No register spills and no stack frames, for every architecture."""
    assert_no_spills(CUDA / f"{kernel}_{precision}.cu", kernel, KERNELS[kernel], tmp_path)
