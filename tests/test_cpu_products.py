"""The matrix products of the CPU kernels (csrc/cpu/matmul.hpp): every size takes another way through their tiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import ROOT, assert_right, sanitized

from pybilevel import _C

SETS = {
    "baseline": ["-DPB_ISA=baseline"],
    "avx2": ["-DPB_ISA=avx2", "-DPB_X86=1", "-mavx2", "-mfma", "-ffp-contract=off"],
}
"""The flags of every instruction set."""

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="the program needs g++")


@pytest.fixture(scope="module", params=[pytest.param("baseline", marks=pytest.mark.slow), "avx2"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/cpu_programs/products.cpp for an instruction set, under AddressSanitizer."""
    if request.param not in _C.build_info()["isa"]:
        pytest.skip(f"this CPU has no {request.param}")
    source = ROOT / "tests" / "cpu_programs" / "products.cpp"
    # without optimisation: compiling it takes longest
    return sanitized(tmp_path_factory.mktemp("products"), source, ["-O0", "-Wno-psabi", *SETS[request.param]])


@needs_gcc
@pytest.mark.parametrize("product", ["mix", "dots"])
def test_every_size_is_right_in_its_bounds_and_of_the_same_bits_by_halves(program, product):
    assert_right(program, product)
