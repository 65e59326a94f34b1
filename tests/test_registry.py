"""csrc/registry.def, the headers and the Python classes agree: a recipe half followed is a failed test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from optimizer_cases import optimizers

import pybilevel as pb
from pybilevel import _C
from pybilevel.engine.native import NATIVE
from pybilevel.problems import LinearProblem
from pybilevel.problems.activations import ACTIVATIONS
from pybilevel.problems.mlp import _ROW_LOSSES

CSRC = Path(__file__).parent.parent / "csrc"
ROW = re.compile(r"^PB_(LOSS|COORDINATES|ACTIVATION|OPTIMIZER)\((\w+), (\w+)(?:, (\w+))?\)$", re.MULTILINE)
# Kind of row -> the header of a name, and the class in it of a type.
HEADERS = {
    "LOSS": ("losses/{}.hpp", "struct {} {{"),
    "COORDINATES": ("problems/linear_{}.hpp", "class Linear{} {{"),
    "ACTIVATION": ("activations/{}.hpp", "struct {} {{"),
    "OPTIMIZER": ("optimizers/{}.hpp", "class {} "),
}
ROWS = ROW.findall((CSRC / "registry.def").read_text())


def names(kind: str) -> list[str]:
    return [name for row, name, *_ in ROWS if row == kind]


def problem_classes() -> dict[str, str]:
    """The loss of every public linear problem -> the name of its class."""
    public = [getattr(pb, name) for name in pb.__all__]
    linear = [
        c for c in public if isinstance(c, type) and issubclass(c, LinearProblem) and hasattr(c, "loss")
    ]
    return {c.loss: c.__name__ for c in linear}


@pytest.mark.parametrize(("kind", "name", "type_name"), [row[:3] for row in ROWS])
def test_every_row_has_its_header_and_the_dispatch_includes_it(kind: str, name: str, type_name: str) -> None:
    path, declaration = HEADERS[kind]
    assert declaration.format(type_name) in (CSRC / path.format(name)).read_text()
    others = {"OPTIMIZER": "any_optimizer.hpp", "ACTIVATION": "any_activation.hpp"}
    dispatch = others.get(kind, "linear_dispatch.hpp")
    assert f'#include "{path.format(name)}"' in (CSRC / "driver" / dispatch).read_text()


def test_every_header_has_a_row() -> None:
    losses = [p.stem for p in CSRC.glob("losses/*.hpp") if "residual(" in p.read_text()]
    assert sorted(losses) == sorted(names("LOSS"))
    assert sorted(p.stem for p in CSRC.glob("optimizers/*.hpp")) == sorted(names("OPTIMIZER"))
    assert sorted(p.stem for p in CSRC.glob("activations/*.hpp")) == sorted(names("ACTIVATION"))


def test_every_row_has_a_python_class() -> None:
    assert sorted(problem_classes()) == sorted(names("LOSS"))
    assert set(names("OPTIMIZER")) == {one.name for one in NATIVE} == set(optimizers())
    assert list(ACTIVATIONS) == names("ACTIVATION")


def test_every_loss_has_a_name_on_perceptrons() -> None:
    assert sorted(native for native, _ in _ROW_LOSSES.values()) == sorted(names("LOSS"))


def test_the_module_tells_the_rows() -> None:
    coordinates = [(name, losses) for kind, name, _, losses in ROWS if kind == "COORDINATES"]
    pairs = [
        (loss, name) for loss in names("LOSS") for name, losses in coordinates if losses in ("any", loss)
    ]
    assert _C.registry()["problems"] == pairs
    assert _C.registry()["activations"] == names("ACTIVATION")
    assert list(_C.registry()["optimizers"]) == names("OPTIMIZER")


@pytest.mark.parametrize(
    ("names_of", "message"),
    [
        (("hinge", "primal"), r"unknown loss 'hinge'; known: softmax, squared\."),
        (("softmax", "polar"), r"unknown coordinates 'polar'; known: primal, dual, normal\."),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(names_of: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*names_of, steps=2)


@pytest.mark.parametrize("coordinates", names("COORDINATES"))
def test_a_present_but_empty_setting_is_not_an_absent_one(coordinates: str) -> None:
    """Momentum [B, 0] points to nothing, and yet there is a velocity to return."""
    _, buffers, *_, trajectory, _ = call("squared", coordinates, steps=0)
    assert torch.equal(buffers, torch.zeros(1, 2, 4, 3))
    assert trajectory.shape[-1] == call("squared", coordinates, steps=1)[4].shape[-1]


def call(loss: str, coordinates: str, steps: int) -> tuple[torch.Tensor, ...]:
    """The operator with momentum, on 2 tasks of 5 rows, 3 features and 3 classes."""
    x, labels, settings = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, steps)
    plan = pb.StoreAll().plan(steps)
    settings = (settings, settings, None, None, None)
    data = (x, labels, None, torch.zeros(2), None, None, *settings, None, None, None)
    sizes = (
        loss,
        coordinates,
        "tasks",
        "sgd",
        3,
        True,
        1.0,
        1.0,
        *(0, 1, 0),
        steps,
        torch.tensor(plan.ops, dtype=torch.int32),
        plan.slots,
        plan.reversed,
        False,
    )
    return torch.ops.pybilevel.linear_unroll(*data, *sizes)
