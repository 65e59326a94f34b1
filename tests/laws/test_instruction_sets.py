"""The portable kernels (PYBILEVEL_ISA=baseline) and those for this machine agree to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linear_cases import ROWS, Case, exact, forced, fused, plain
from tolerance import assert_matches

from pybilevel import _C

CASES = [
    (coordinates, Case(loss, targets, optimizer, "momentum", n=13, d=21, dtype=dtype, objective="ml"))
    for loss, targets, coordinates, optimizer in ROWS
    for dtype in (torch.float32, torch.float64)
]

PROGRAM = """
import sys, torch
sys.path[:0] = {folders!r}
from pybilevel import _C
from test_instruction_sets import CASES, solve
assert _C.build_info()["isa_in_use"] == "baseline"
torch.save([solve(*case) for case in CASES], sys.argv[1])
"""


def solve(coordinates, case):
    with forced(coordinates):
        found = fused(case)
    return found.values | found.gradients


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """What the portable kernels find, in a process of their own: the choice is made once a process."""
    path = tmp_path_factory.mktemp("portable") / "results.pt"
    here = Path(__file__).parent
    program = PROGRAM.format(folders=[str(here), str(here.parent)])
    environment = os.environ | {"PYBILEVEL_ISA": "baseline", "PYBILEVEL_POISON": "1"}
    subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=True)
    return torch.load(path)


@pytest.mark.skipif(
    _C.build_info()["isa_in_use"] == "baseline", reason="this machine has the portable kernels only"
)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_portable_kernels(portable, index):
    coordinates, case = CASES[index]
    ours, best, ordinary = solve(coordinates, case), exact(case), plain(case)
    best, ordinary = best.values | best.gradients, ordinary.values | ordinary.gradients
    assert ours.keys() == portable[index].keys()
    for name, found in portable[index].items():
        assert_matches(found, best[name], name, ordinary[name])
        assert_matches(ours[name], best[name], name, ordinary[name])
