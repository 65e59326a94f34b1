"""docs/perceptrons.md: its examples run."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "perceptrons.md").read_text()
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.usefixtures("one_thread")
def test_examples_run(capsys):
    scope = {}
    exec(BLOCKS["problem"], scope)
    assert scope["loss"].shape == (25,) and all(leaf.grad.abs().sum() > 0 for leaf in scope["leaves"])
    exec(BLOCKS["linear"], scope)
    assert scope["w"][0][0].shape == (25, 1, 40)
    exec(BLOCKS["maml"], scope)
    assert len(eval(capsys.readouterr().out)) == 11
    assert set(BLOCKS) == {"problem", "linear", "maml"}
