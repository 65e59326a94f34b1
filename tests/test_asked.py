"""docs/asked.md: every test, page and name that it refers to exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import pybilevel as pb

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "asked.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_every_test_on_the_page_exists(path, name):
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert (name in functions) if name else any(f.startswith("test_") for f in functions)


def test_every_name_on_the_page_exists():
    names = set(re.findall(r"`pb\.(\w+)", PAGE))
    assert names and all(hasattr(pb, name) for name in names), names
    for module in re.findall(r"`(pybilevel\.[\w.]+)`", PAGE):
        importlib.import_module(module)
    for page in re.findall(r"docs/\w+\.md", PAGE):
        assert (ROOT / page).exists(), page


def test_every_row_has_an_answer_and_a_test():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 20
    for asked, answer, held in rows:
        assert answer.strip() and "tests/" in held, asked
