"""docs/needs.md: every test that it names is there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "needs.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:laws/)?test_\w+\.py)(?:::(\w+))?`", PAGE)))
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file: str, name: str) -> None:
    assert f"def {name}" in (TESTS / file).read_text()


def test_every_wish_has_a_feature_and_something_that_shows_it() -> None:
    assert len(ROWS) >= 15
    for row in ROWS:
        cells = [cell.strip() for cell in row.replace("\\|", "/").strip("|").split("|")]
        assert len(cells) == 3 and all(cells), row
        assert "`" in cells[2], row
