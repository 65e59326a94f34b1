"""Building CUDA sources in tests: with nvcc, and with g++ for the CPU emulator of tests/cuda_emulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EMULATOR = ROOT / "tests" / "cuda_emulator"
ARCHITECTURES = (80, 90)

# The two ways to run the threads of a block, each with the sanitizers it is made for.
MODES = {
    "fibers": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread", "-DPB_CUDA_EMULATOR_THREADS", "-pthread"],
}
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's
_COMMON = ["-std=c++20", "-O1", "-g", f"-I{ROOT / 'csrc'}", f"-I{EMULATOR}"]


def emulated(folder: Path, name: str, mode: str, cuda: list[Path], host: list[Path] | None = None) -> Path:
    """Compile `cuda` sources for the emulator in a mode of MODES, and `host` sources beside them; link them."""
    program = folder / f"{name}_{mode}"
    flags = [*_COMMON, *_WARNINGS, *MODES[mode]]
    objects = [compiled(source, folder, [*flags, "-DPB_CUDA_EMULATOR", "-x", "c++"]) for source in cuda]
    objects += [compiled(source, folder, flags) for source in host or [] if source.suffix != ".o"]
    objects += [source for source in host or [] if source.suffix == ".o"]
    run_compiler(["g++", *MODES[mode], *map(str, objects), "-o", str(program), "-pthread"])
    return program


def sanitized(folder: Path, source: Path, flags: list[str]) -> Path:
    """A program of one `source` of the host, under AddressSanitizer, with warnings as errors."""
    program = folder / source.stem
    flags = [*_COMMON, *_WARNINGS, "-fsanitize=address", *flags]
    run_compiler(["g++", *flags, str(source), "-o", str(program)])
    return program


def compiled(source: Path, folder: Path, flags: list[str] | None = None) -> Path:
    """The object file of one source; without flags: the portable CPU kernels, no sanitizer, no warnings."""
    target = folder / f"{source.stem}.o"
    run_compiler(
        ["g++", *(flags or [*_COMMON, "-DPB_ISA=baseline", "-w"]), "-c", str(source), "-o", str(target)]
    )
    return target


def cpu_reference(name: str) -> Any:
    """A fixture of a test module: the object file of csrc/cpu/`name`.cpp, what its kernels are compared with."""

    @pytest.fixture(scope="module")
    def cpu_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return compiled(ROOT / "csrc" / "cpu" / f"{name}.cpp", tmp_path_factory.mktemp("cpu"))

    return cpu_kernels


def assert_right(program: Path, *arguments: str) -> None:
    """A program that compares, and prints "right", does so under its sanitizers."""
    done = run_program(program, *arguments)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that `emulated` built; its output is text."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        [str(program), *arguments], env=os.environ | options, capture_output=True, text=True, timeout=300
    )
    if "ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip(
            "this kernel's address randomisation is more than ThreadSanitizer allows (vm.mmap_rnd_bits)"
        )
    return done


def nvcc() -> str | None:
    """The CUDA compiler, if there is one."""
    return shutil.which("nvcc")


def ptxas_report(source: Path, folder: Path) -> str:
    """Compile one .cu file with the flags of the build for ARCHITECTURES; what ptxas says of registers and spills."""
    flags = [
        "-std=c++20",
        "-O3",
        "-fmad=false",
        "--expt-relaxed-constexpr",
        f"-I{ROOT / 'csrc'}",
        "-Xptxas=-v",
    ]
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    output = folder / f"{source.stem}.o"
    return run_compiler(
        [nvcc() or "nvcc", *flags, *targets, "--threads=2", "-c", str(source), "-o", str(output)]
    )


def assert_no_spills(source: Path, kernel: str, count: int, folder: Path) -> None:
    """`source` has `count` kernels `<kernel>_kernel`; none spills or has a stack frame on any architecture."""
    report = ptxas_report(source, folder)
    for architecture in ARCHITECTURES:
        kernels = re.findall(
            rf"Compiling entry function '\w*{kernel}_kernel\w*' for 'sm_{architecture}'", report
        )
        assert len(kernels) == count
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) >= count * len(ARCHITECTURES)
    assert set(frames) == {("0", "0", "0")}, report


def run_compiler(command: list[str]) -> str:
    """Run a compiler that must succeed; all that it prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
