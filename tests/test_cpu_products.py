"""The matrix products of the CPU kernels (csrc/cpu/matmul.hpp): every size takes another way through their tiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cuda_programs import ROOT, assert_right, compiled, run_compiler

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
    folder = tmp_path_factory.mktemp("products")
    sanitizers = ["-fsanitize=address"]
    flags = ["-std=c++20", "-O0", "-g", f"-I{ROOT / 'csrc'}", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas", "-Wno-psabi", *SETS[request.param], *sanitizers]
    source = compiled(ROOT / "tests" / "cpu_programs" / "products.cpp", folder, flags)
    target = folder / "products"
    run_compiler(["g++", *sanitizers, str(source), "-o", str(target)])
    return target


@needs_gcc
@pytest.mark.parametrize("product", ["mix", "dots"])
def test_every_size_is_right_in_its_bounds_and_of_the_same_bits_by_halves(program, product):
    assert_right(program, product)
