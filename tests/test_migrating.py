"""docs/migrating.md, run: the blocks of a section, ours and theirs, give the same value and hypergradients.

A block is the code that stands on the page, after the block `setup`. Blocks of a library that is not installed are
skipped; ours is compared with a loop of REFERENCES too, where a section has one.
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import assert_matches

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
BLOCK = re.compile(r"^```python (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SECTIONS = {
    title: dict(BLOCK.findall(body))
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
SETUP = dict(BLOCK.findall(PAGE))["setup"]
LIBRARIES = {
    "higher": "higher",
    "torchopt": "torchopt",
    "learn2learn": "learn2learn",
    "hypergrad": "hypergrad.hypergradients",  # hypertorch's; another library's package has the first name too
}
"""The module that tells whether the library of a block is there."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTALLED = LIBRARIES.keys() & set(EXTRAS["bench"])
PAIRS = [(title, kind) for title, blocks in SECTIONS.items() for kind in blocks if kind != "pybilevel"]

_DESCENT = """
w = dict(net.named_parameters())
{lrs}
for _ in range(5):
    inner = F.cross_entropy(functional_call(net, w, support), labels)
    gradients = torch.autograd.grad(inner, list(w.values()), create_graph={exact})
    w = {{name: p - {rate} * g for (name, p), g in zip(w.items(), gradients)}}
loss = F.cross_entropy(functional_call(net, w, query), targets)
loss.backward()
"""
REFERENCES = {
    "learn2learn": _DESCENT.format(lrs="", rate="0.1", exact=True),
    "learn2learn, Meta-SGD": _DESCENT.format(
        lrs="lrs = {name: nn.Parameter(torch.full_like(p, 0.1)) for name, p in w.items()}\n"
        "hyperparameters = [*net.parameters(), *lrs.values()]",
        rate="lrs[name]",
        exact=True,
    ),
    "learn2learn, first order": _DESCENT.format(lrs="", rate="0.1", exact=False),
    "hypertorch": """
def slope(w, log_l2):
    inner = F.cross_entropy(support @ w, labels) + 0.5 * log_l2.exp() * w.square().sum()
    return torch.autograd.grad(inner, w, create_graph=True)[0]


w = torch.zeros(8, 3, requires_grad=True)
for _ in range(1000):
    w = (w - 0.5 * slope(w, log_l2)).detach().requires_grad_()
loss = F.cross_entropy(query @ w, targets)
H = torch.autograd.functional.jacobian(lambda w: slope(w, log_l2), w).reshape(24, 24)
q = torch.linalg.solve(H, torch.autograd.grad(loss, w)[0].flatten()).reshape(8, 3)
log_l2.grad = -torch.autograd.grad(slope(w, log_l2), log_l2, q)[0]
""",
    "Seeing and stopping": """
from pybilevel.engine.oracle import adam

w, moments = dict(net.named_parameters()), {name: {} for name, _ in net.named_parameters()}
for t in range(1000):
    inner = F.cross_entropy(functional_call(net, w, support), labels)
    gradients = dict(zip(w, torch.autograd.grad(inner, list(w.values()), create_graph=True)))
    for name, g in gradients.items():
        w[name], moments[name] = adam(
            w[name], g, moments[name], t, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8
        )
    if inner < 0.5:
        break
loss = F.cross_entropy(functional_call(net, w, query), targets)
loss.backward()
""",
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """The page is written for the default dtype, and the policy of tolerances is sharper in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(code: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Value and hypergradients after the code of a block; zeros where the block leaves none."""
    names: dict[str, Any] = {}
    exec(compile(SETUP, "setup", "exec"), names)
    exec(compile(code, "block", "exec"), names)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in names["hyperparameters"]]
    return names["loss"].detach(), found


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


def assert_pair(ours: str, theirs: str) -> None:
    (value, gradients), (exact, expected) = run(ours), run(theirs)
    assert any(g.any() for g in expected)
    assert_matches(value, exact, "loss")
    assert len(gradients) == len(expected)
    for i, (mine, other) in enumerate(zip(gradients, expected, strict=True)):
        assert_matches(mine, other, f"hyperparameter {i}")


@pytest.mark.parametrize(("title", "kind"), PAIRS)
def test_a_pair_of_the_page_agrees(title: str, kind: str) -> None:
    if kind in LIBRARIES and not is_there(LIBRARIES[kind]):
        pytest.skip(f"{kind} is not installed")
    assert_pair(SECTIONS[title]["pybilevel"], SECTIONS[title][kind])


@pytest.mark.parametrize("title", REFERENCES)
def test_ours_agrees_with_a_plain_loop(title: str) -> None:
    assert_pair(SECTIONS[title]["pybilevel"], REFERENCES[title])


def test_every_section_has_ours_and_something_that_runs_to_compare_it_with() -> None:
    """A library that `pip install .[bench]` does not bring counts for nothing."""
    assert {kind for _, kind in PAIRS} <= LIBRARIES.keys() | {"plain"}
    for title, blocks in SECTIONS.items():
        assert "pybilevel" in blocks
        assert blocks.keys() & {"plain", *INSTALLED} or title in REFERENCES, title
