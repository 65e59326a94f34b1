"""docs/networks.md: its examples run, and what it says of buffers is what ModuleLoss takes."""

import re
from pathlib import Path
from typing import get_args

import pytest

from pybilevel.problems.module_loss import Policy

PAGE = (Path(__file__).parent.parent / "docs" / "networks.md").read_text()
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def run(*names):
    scope = {}
    for name in names:
        exec(BLOCKS[name], scope)
    return scope


@pytest.mark.parametrize("names", [["module"], ["batches"], ["module", "tasks"]], ids=str)
def test_examples_run_and_give_gradients(names, one_thread):
    scope = run("setup", *names)
    assert scope["lr"].grad.abs() > 0
    if "batches" in names:
        assert scope["learned"].grad.abs().sum() > 0
    else:
        # the bias before a BatchNorm has none: its layer takes the mean away
        assert all(p.grad is not None for p in scope["net"].parameters())


def test_every_example_is_run():
    assert set(BLOCKS) == {"setup", "module", "batches", "tasks"}


def test_every_policy_is_in_the_table():
    assert all(f'| `"{policy}"' in PAGE for policy in get_args(Policy))


def test_the_tests_it_names_are_there():
    named = re.findall(r"`(tests/\w+\.py)`", PAGE)
    assert named and all((Path(__file__).parent.parent / name).exists() for name in named)
