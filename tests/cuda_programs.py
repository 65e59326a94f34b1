"""Building CUDA sources in tests: with nvcc, and with g++ for the CPU emulator of tests/cuda_emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
EMULATOR = ROOT / "tests" / "cuda_emulator"
ARCHITECTURES = ("sm_80", "sm_90")

# The two ways to run the threads of a block, each with the sanitizers it is made for.
MODES = {
    "fibers": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread", "-DPB_CUDA_EMULATOR_THREADS", "-pthread"],
}
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's
_COMMON = ["-std=c++20", "-O1", "-g", f"-I{ROOT / 'csrc'}", f"-I{EMULATOR}"]


def emulated(folder: Path, name: str, mode: str, cuda: list[Path], host: list[Path] | None = None) -> Path:
    """Compile `cuda` sources for the emulator in a mode of MODES, and `host` sources as they are, into one program."""
    program = folder / f"{name}_{mode}"
    objects = []
    for sources, flags in ((cuda, ["-DPB_CUDA_EMULATOR", "-x", "c++"]), (host or [], [])):
        for source in sources:
            target = folder / f"{name}_{mode}_{source.stem}_{len(objects)}.o"
            _run(["g++", *_COMMON, *_WARNINGS, *MODES[mode], *flags, "-c", str(source), "-o", str(target)])
            objects.append(str(target))
    _run(["g++", *MODES[mode], *objects, "-o", str(program), "-pthread"])
    return program


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that `emulated` built; its output is text."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [str(program), *arguments], env=os.environ | options, capture_output=True, text=True, timeout=300
    )


def nvcc() -> str | None:
    """The CUDA compiler, if there is one."""
    return shutil.which("nvcc")


def ptxas_report(source: Path, architecture: str, output: Path) -> str:
    """Compile one .cu file with the flags of the build; what ptxas says about registers and spills."""
    flags = [
        "-std=c++20",
        "-O3",
        "-fmad=false",
        "--expt-relaxed-constexpr",
        f"-I{ROOT / 'csrc'}",
        "-Xptxas=-v",
    ]
    return _run([nvcc() or "nvcc", *flags, f"-arch={architecture}", "-c", str(source), "-o", str(output)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
