"""Every instruction set that this processor runs (PYBILEVEL_ISA) agrees with the oracle to rounding, as the widest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linear_cases import ROWS, Case, exact, forced, fused, plain
from linear_optimizers import USUAL
from tolerance import assert_matches

from pybilevel import _C

CASES = [
    (
        way,
        Case(loss, targets, optimizer, USUAL[optimizer], tasks=(9,), n=13, d=21, dtype=dtype, objective="ml"),
    )
    for loss, targets, way, optimizer in ROWS
    for dtype in (torch.float32, torch.float64)
]

IN_USE = _C.build_info()["isa_in_use"]
OTHERS = [isa for isa in _C.build_info()["isa"] if isa != IN_USE]

PROGRAM = """
import sys, torch
sys.path[:0] = {folders!r}
from pybilevel import _C
from test_instruction_sets import CASES, solve
assert _C.build_info()["isa_in_use"] == sys.argv[1]
torch.save([solve(*case) for case in CASES], sys.argv[2])
"""


def solve(way, case):
    with forced(way):
        found = fused(case)
    return found.values | found.gradients


@pytest.fixture(scope="module", params=OTHERS)
def others(request, tmp_path_factory):
    """What the kernels of another set find, in a process of their own: the choice is made once a process."""
    path = tmp_path_factory.mktemp("others") / "results.pt"
    here = Path(__file__).parent
    program = PROGRAM.format(folders=[str(here), str(here.parent)])
    environment = os.environ | {"PYBILEVEL_ISA": request.param, "PYBILEVEL_POISON": "1"}
    subprocess.run([sys.executable, "-c", program, request.param, str(path)], env=environment, check=True)
    return torch.load(path)


def test_the_widest_set_is_in_use_unless_one_is_asked_for():
    asked = os.environ.get("PYBILEVEL_ISA")
    assert (asked if asked in _C.build_info()["isa"] else _C.build_info()["isa"][-1]) == IN_USE
    assert _C.build_info()["isa"][0] == "baseline"


def assert_as_exact(found, case):
    best, ordinary = exact(case), plain(case)
    best, ordinary = best.values | best.gradients, ordinary.values | ordinary.gradients
    assert found.keys() == best.keys()
    for name in best:
        assert_matches(found[name], best[name], name, ordinary[name])


@pytest.mark.parametrize("index", range(len(CASES)))
def test_this_set(index):
    assert_as_exact(solve(*CASES[index]), CASES[index][1])


@pytest.mark.parametrize("index", range(len(CASES)))
def test_other_sets(others, index):
    assert_as_exact(others[index], CASES[index][1])
