"""docs/methods.md: its examples run, and its figures are made by a command that works."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

import pybilevel as pb
from benchmarks import methods as figures
from pybilevel.methods import Method
from pybilevel.methods.methods import SOLVERS

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("setup", "warm")])
def test_examples_run(name):
    scope = {}
    exec(BLOCKS["setup"], scope)
    exec(BLOCKS[name], scope)
    if name == "implicit":  # the next example goes on from there
        scope["log_l2"].grad = None
        first = scope["state"].info["iterations"]
        exec(BLOCKS["warm"], scope)
        assert scope["state"].info["iterations"] < first
    if name == "verify":
        assert scope["gradient"].abs() > 0 and scope["found"].verification.difference < 1e-3
    else:
        assert scope["log_l2"].grad.abs() > 0


def test_the_page_names_every_method_and_solver():
    for method in get_args(Method):
        assert f"`{method.__name__}(" in PAGE
    for solver in SOLVERS:
        assert f'`"{solver}"`' in PAGE


def test_the_figures_are_made_by_a_command_that_works():
    sizes = {"n": 12, "d": 3, "c": 2}
    costs = figures.costs(cases=((2, 1), (3, 4)), **sizes).splitlines()
    assert costs[0] == "| ms, KiB | T = 2, P = 2 | T = 3, P = 5 |"
    errors = [
        row.split(" | ") for row in figures.errors(steps=(12,), groups=2, converged=400, **sizes).splitlines()
    ]
    names = [row[0].removeprefix("| ") for row in errors[2:]]
    assert names == list(figures.METHODS) == [row.split(" | ")[0].removeprefix("| ") for row in costs[2:]]
    found = {name: float(row[1]) for name, row in zip(names, errors[2:], strict=True)}
    for name in ("Reverse, StoreAll", "Reverse, Revolve(5)", "Forward"):
        assert found[name] < 1e-5 < found["Reverse, first order"]


def test_the_example_has_a_solution_that_reverse_and_implicit_agree_on():
    example = figures.Example(3, n=20, d=3, c=2, dtype=torch.float64)
    steps = example.run(1500)
    solution = example.run(1500, method=pb.Implicit("cg", tol=1e-12))
    for a, b in zip(steps, solution, strict=True):
        assert torch.allclose(a, b, rtol=1e-6)
