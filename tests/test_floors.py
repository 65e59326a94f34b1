"""The floors: imports and includes run downward only (see csrc/README.md and CONTRIBUTING.md).

A floor is a folder (or a top-level file). The tables below say what each may see; what they do not name is forbidden.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pybilevel"
NATIVE = ROOT / "csrc"

# ---------------------------------------------------------------------------------------------------- Python

_VALUES = {"_C", "errors", "checks", "schedules", "optimizers"}
_VOCABULARY = _VALUES | {"problems", "methods"}
_BELOW_FACE = _VOCABULARY | {"ops", "engine", "objectives"}

PYTHON_ARROWS: dict[str, set[str]] = {
    # vocabulary: each sees those before it
    "_C": set(),
    "errors": {"_C"},
    "checks": {"_C", "errors"},
    "schedules": {"_C", "errors", "checks"},
    "optimizers": {"_C", "errors", "checks", "schedules"},
    "problems": _VALUES,
    "methods": _VALUES | {"problems"},
    # the floors proper
    "ops": _VOCABULARY,
    "engine": _VOCABULARY | {"ops"},
    "objectives": _VOCABULARY | {"ops", "engine"},
    "face": _BELOW_FACE,
    # users of the face, like any other user
    "data": {"face"},
    "experiments": {"face", "data"},
    "cli": {"face", "data", "experiments"},
}
ABOVE_FACE = {"data", "experiments", "cli"}
LIBRARIES = {"torch", "numpy"}  # beside the standard library, all that anything up to the face may import


def python_floor(path: Path) -> str:
    """The floor of a source file given relative to pybilevel/: "face" for __init__.py itself."""
    return "face" if path == Path("__init__.py") else path.parts[0].removesuffix(".py").removesuffix(".pyi")


def imported_modules(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Every module that a source imports, absolute, wherever the statement stands. `package` holds the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "pybilevel":  # names of the face, or its submodules: `from pybilevel import engine`
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def python_violations(path: Path, source: str) -> list[str]:
    """The imports of one source (path relative to pybilevel/) that its floor forbids."""
    floor = python_floor(path)
    if floor not in PYTHON_ARROWS:
        return [f"{path}: no floor is called {floor!r}; add it to PYTHON_ARROWS"]
    found = []
    for module in imported_modules(ast.parse(source), ["pybilevel", *path.parts[:-1]]):
        library, *rest = module.split(".")
        if library == "pybilevel":
            target = rest[0] if rest and rest[0] in PYTHON_ARROWS else "face"
            allowed = target == floor or target in PYTHON_ARROWS[floor]
        else:
            allowed = floor in ABOVE_FACE or library in sys.stdlib_module_names | LIBRARIES
        if not allowed:
            found.append(f"{path}: {floor} must not import {module}")
    return found


# ---------------------------------------------------------------------------------------------------- C++

_FORMULAS = {"core", "losses", "activations", "problems", "optimizers"}

NATIVE_ARROWS: dict[str, set[str]] = {
    "core": set(),
    "losses": {"core"},
    "activations": {"core"},
    "problems": {"losses", "activations", "core"},
    "optimizers": {"losses", "core"},
    "driver": _FORMULAS | {"registry"},
    "cpu": _FORMULAS | {"driver", "registry"},
    "cuda": _FORMULAS | {"driver", "registry"},
    "ops": _FORMULAS | {"driver", "registry", "cpu", "cuda"},
    "module": _FORMULAS | {"driver", "registry", "cpu", "cuda", "ops"},
}
# <...> headers other than the standard library's, by the only floors that may include them.
SYSTEM_HEADERS = {
    "ops": re.compile(r"(torch|ATen|c10)/.*|sys/mman\.h"),
    "cuda": re.compile(r"cuda\w*\.h|cooperative_groups(\.h|/.*)?|cuda/.*"),
    "cpu": re.compile(r"\w*intrin\.h|arm_neon\.h"),
    "module": re.compile(r"pybind11/.*"),
}
TEST_SEAM = ("cuda/portability.hpp", "emulator.hpp")  # the one header that tests put under the kernels
STANDARD_HEADER = re.compile(r"[a-z_0-9]+")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', re.MULTILINE)


def native_floor(path: Path) -> str:
    """The floor of a source file given relative to csrc/: "module" for a source at the top."""
    if len(path.parts) > 1:
        return path.parts[0]
    return path.stem if path.suffix == ".def" else "module"


def native_violations(path: Path, source: str) -> list[str]:
    """The includes of one source (path relative to csrc/) that its floor forbids."""
    floor = native_floor(path)
    if floor not in NATIVE_ARROWS:
        return [f"{path}: no floor is called {floor!r}; add it to NATIVE_ARROWS"]
    found = []
    for system, local in INCLUDE.findall(source):
        if (path.as_posix(), system) == TEST_SEAM:
            allowed = True
        elif system:
            own = SYSTEM_HEADERS.get(floor)
            allowed = bool(STANDARD_HEADER.fullmatch(system) or (own and own.fullmatch(system)))
        else:
            target = native_floor(Path(local))
            allowed = target == floor or target in NATIVE_ARROWS[floor]
        if not allowed:
            found.append(f"{path}: {floor} must not include {system or local}")
    return found


# ---------------------------------------------------------------------------------------------------- the law


def test_python_imports_run_downward() -> None:
    sources = [p for suffix in ("*.py", "*.pyi") for p in sorted(PACKAGE.rglob(suffix))]
    assert sources
    assert [v for p in sources for v in python_violations(p.relative_to(PACKAGE), p.read_text())] == []


def test_native_includes_run_downward() -> None:
    sources = [p for suffix in ("*.cpp", "*.hpp", "*.cu", "*.cuh") for p in sorted(NATIVE.rglob(suffix))]
    assert sources
    assert [v for p in sources for v in native_violations(p.relative_to(NATIVE), p.read_text())] == []


# -------------------------------------------------------------------------------- the law can be broken


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/linear.py", "from pybilevel.engine.unroll import unroll"),
        ("ops/linear.py", "from ..engine import unroll"),
        ("ops/linear.py", "from .. import engine"),
        ("ops/linear.py", "import pybilevel"),
        ("ops/linear.py", "def f():\n    import pybilevel.objectives.meta"),
        ("schedules/revolve.py", "from ..problems import SoftmaxRegression"),
        ("problems/base.py", "import typing\nif typing.TYPE_CHECKING:\n    from pybilevel.ops import linear"),
        ("engine/generic.py", "import rich"),
        ("data/omniglot.py", "from pybilevel.engine import unroll"),
        ("data/omniglot.py", "from pybilevel import _C"),
        ("__init__.py", "from pybilevel.experiments import fewshot"),
        ("novelty/x.py", "import math"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(python_violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ops/linear.py",
            "import torch\nfrom .. import _C\nfrom ..problems import base\nfrom . import checks",
        ),
        (
            "engine/unroll.py",
            "from collections import abc\nfrom pybilevel.ops import linear\nimport numpy.linalg",
        ),
        ("experiments/fewshot.py", "import rich\nimport pybilevel as pb\nfrom pybilevel import unroll"),
        ("cli.py", "import typer\nfrom pybilevel.experiments import fewshot\nfrom .data import omniglot"),
        (
            "__init__.py",
            "from pybilevel.objectives.meta import ml_objective\nfrom .errors import BackendError",
        ),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    assert python_violations(Path(path), source) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/plan.hpp", '#include "losses/softmax.hpp"'),
        ("losses/softmax.hpp", '#include "problems/linear_dual.hpp"'),
        ("problems/linear_dual.hpp", '#include "optimizers/sgd.hpp"'),
        ("cpu/linear.cpp", '#include "cuda/linear.hpp"'),
        ("cuda/linear.cu", "#include <ATen/ATen.h>"),
        ("driver/unroll.hpp", '#  include   "cpu/team.hpp"  // why'),
        ("driver/unroll.hpp", "#include <immintrin.h>"),
        ("core/view.hpp", "#include <cuda_runtime.h>"),
        ("core/view.hpp", '#include "view.hpp"'),  # from csrc/, always: "core/view.hpp"
        ("cuda/team.hpp", "#include <emulator.hpp>"),
        ("core/view.hpp", '#include "../core/plan.hpp"'),
        ("module.cpp", "#include <torch/library.h>"),
        ("novelty/x.hpp", "#include <cmath>"),
    ],
)
def test_a_forbidden_include_is_found(path: str, source: str) -> None:
    assert len(native_violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/plan.hpp", '#include <cstdint>\n#include "core/view.hpp"'),
        ("cpu/linear.cpp", '#include <immintrin.h>\n#include "driver/unroll.hpp"\n#include "registry.def"'),
        ("cuda/linear.cu", '#include <cuda_runtime.h>\n#include "driver/unroll.hpp"'),
        (
            "ops/linear.cpp",
            '#include <torch/library.h>\n#include "cpu/linear.hpp"\n#include "cuda/linear.hpp"',
        ),
        ("module.cpp", '#include <pybind11/pybind11.h>\n#include "core/plan.hpp"\n#include "registry.def"'),
    ],
)
def test_an_allowed_include_passes(path: str, source: str) -> None:
    assert native_violations(Path(path), source) == []
