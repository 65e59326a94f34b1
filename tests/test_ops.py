"""The native operators as torch sees them: schemas, fake implementations, registered autograd, checks."""

import pytest
import torch
from linear_cases import ROWS, Built, Case, forced
from linear_optimizers import RICHEST, USUAL

from pybilevel.engine.arguments import normalise
from pybilevel.engine.layout import lay_out
from pybilevel.ops import LinearResults, linear_unroll, padded_tasks, state_size
from pybilevel.ops.linear import left_size
from pybilevel.ops.node import TENSORS
from pybilevel.ops.optimizers import SETTINGS
from pybilevel.schedules import Code, Revolve, StoreAll, encode

NAMES = [
    *("x", "y", "weights", "l2", "w0", "buffers0", *(f"setting{i}" for i in range(SETTINGS))),
    *("query_x", "query_y", "query_weights", "loss", "coordinates", "regime", "optimizer", "classes", "bias"),
    *("scale", "query_scale", "flags", "buffers", "start", "steps", "plan", "slots", "reversed", "keep"),
    "precision",
]
"""The arguments of both operators, in order."""

WAYS = ["primal", "dual", "lanes"]

OP, BACKWARD = torch.ops.pybilevel.linear_unroll.default, torch.ops.pybilevel.linear_unroll_backward.default

CASES = {
    "everything": Case(variant="nesterov-decay", objective="ho"),
    "soft": Case(targets="soft", variant="momentum", objective="ho", tasks=(2, 2)),
    "squared": Case(loss="squared", targets="soft", variant="momentum-decay", objective="ho", tasks=()),
    "inner only": Case(variant="plain", objective="state", w0=False, weights="none", l2="number"),
    "no task": Case(variant="momentum", objective="ho", tasks=(0,)),
    "no bias, strided": Case(variant="momentum", objective="ho", bias=False, strides="sliced"),
    "adam": Case(optimizer="adam", variant="amsgrad-decay", objective="ho"),
}


def arguments(case, way="primal", memory=None, **changed):
    """What the engine would pass to the operator for a case."""
    built = Built(case, case.inputs())
    memory = StoreAll() if memory is None else memory
    call = normalise(built.problem, built.w0, steps=case.steps, optimizer=built.solver(), memory=memory)
    with forced(way):
        layout = lay_out(call, built.outer if case.objective != "state" else None)
    named = dict(zip(NAMES, layout.arguments(layout.itinerary()), strict=True))
    assert changed.keys() <= named.keys()
    return tuple((named | changed).values())


def leaves(args):
    """The arguments with fresh leaves for the tensors that need gradients: opcheck wants them."""
    return tuple(
        a.detach().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a for a in args
    )


@pytest.fixture
def written_memory():
    """opcheck compares arguments before and after a call, and NaN is not equal to itself."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, way, written_memory):
    """Schema, autograd registration, fake tensors and AOT dispatch, static and dynamic."""
    torch.library.opcheck(OP, leaves(arguments(CASES[name], way)))


@pytest.mark.parametrize("coordinates", WAYS)
@pytest.mark.parametrize("name", ["everything", "soft", "squared"])
def test_opcheck_of_the_backward(name, coordinates, written_memory):
    """It says that it changes the trajectory, and nothing else; it has no autograd of its own."""
    given = tuple(
        a.detach() if isinstance(a, torch.Tensor) else a
        for a in arguments(CASES[name], coordinates, memory=Revolve(2))
    )
    results = LinearResults(*OP(*given))
    trajectory = results.trajectory.nan_to_num()  # free slots are not written in the forward half
    bars = [torch.randn_like(r) for r in (results.w, results.buffers, results.outer, results.logits)]
    needs = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in given[:TENSORS]]
    torch.library.opcheck(
        BACKWARD,
        (*bars, results.w, results.logits, trajectory, needs, *given),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_schema():
    """The names are those of the documentation, and only the trajectory is changed in place."""
    assert [a.name for a in OP._schema.arguments] == NAMES
    assert [a.name for a in BACKWARD._schema.arguments[-len(NAMES) :]] == NAMES
    assert [*(r.name for r in OP._schema.returns), "bad"] == list(LinearResults._fields)
    node = torch.ops.pybilevel.unroll_node.default
    assert [r.name for r in node._schema.returns] == list(LinearResults._fields)
    changed = [a.name for a in BACKWARD._schema.arguments if a.alias_info and a.alias_info.is_write]
    assert changed == ["trajectory"] and not any(a.alias_info for a in OP._schema.arguments)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
@pytest.mark.parametrize("which", [USUAL, RICHEST])
def test_shapes(row, which):
    loss, targets, way, optimizer = row
    case = Case(loss, targets, optimizer, which[optimizer], tasks=(3,), objective="ho")
    buffers = sum(name != "step" for name in Built(case, case.inputs()).solver().buffer_names)
    given = arguments(case, way, memory=Revolve(2))
    results = linear_unroll(*given)
    rows, x = case.d + 1, given[0]
    coordinates, regime = (given[NAMES.index(name)] for name in ("coordinates", "regime"))
    state = state_size(x, case.c, True, coordinates, regime, buffers)
    assert results.w.shape == (3, rows, case.c)
    assert results.buffers.shape == (buffers, 3, rows, case.c)
    assert results.outer.shape == (3,) and results.logits.shape == (3, case.m, case.c)
    left = left_size(x, case.c, case.m, regime)
    assert results.trajectory.shape == (padded_tasks(x, regime), 3 * state + left)
    assert results.status.tolist() == [-1, -1, -1] and results.status.dtype == torch.int32
    assert not results.trajectory.requires_grad and not results.status.requires_grad


def changed(name, change):
    case = Case(variant="nesterov-decay", objective="ho")
    named = dict(zip(NAMES, arguments(case), strict=True))
    return arguments(case, **{name: change(named[name])})


ERRORS = {
    "half x": ("x", lambda x: x.half(), TypeError, "x is Half; fused operators take float32 or float64"),
    "flat x": ("x", lambda x: x[0], ValueError, r"x must be \[B, n, d\], got \[7, 6\]"),
    "labels": ("y", lambda y: y[:, :3], ValueError, r"y must be \[3, 7\], got \[3, 3\]"),
    "soft labels": ("y", lambda y: y.double(), ValueError, r"y must be \[3, 7, 4\], got \[3, 7\]"),
    "weights": ("weights", lambda w: w[:1], ValueError, r"weights must be \[3, 7\], got \[1, 7\]"),
    "l2": ("l2", lambda v: v.float(), TypeError, "l2 is Float but x is Double"),
    "w0": ("w0", lambda w: w[:, :-1], ValueError, r"w0 must be \[3, 7, 4\], got \[3, 6, 4\]"),
    "lr": ("setting0", lambda v: v[:, :2], ValueError, r"lr must be \[3, 5\], got \[3, 2\]"),
    "momentum": ("setting1", lambda v: v.float(), TypeError, "momentum is Float but x is Double"),
    "query": ("query_x", lambda x: x[..., :2], ValueError, r"query_x must be \[3, 5, 6\], got \[3, 5, 2\]"),
    "half a query": ("query_y", lambda y: None, ValueError, "query_x and query_y go together"),
    "loss": ("loss", lambda _: "hinge", ValueError, "unknown loss 'hinge'; known: "),
    "coordinates": ("coordinates", lambda _: "polar", ValueError, "unknown coordinates 'polar'; known: "),
    "no lr": ("setting0", lambda _: None, ValueError, "sgd needs the setting lr"),
    "one setting too many": (
        "setting4",
        lambda _: torch.ones(3, 5).double(),
        ValueError,
        "sgd has no setting 4",
    ),
    "buffers": ("buffers", lambda _: 2, ValueError, "sgd keeps 1 buffers with these settings, got 2"),
    "start": ("start", lambda _: -1, ValueError, "start must be >= 0, got -1"),
    "optimizer": ("optimizer", lambda _: "newton", ValueError, "unknown optimizer 'newton'; known: "),
    "regime": ("regime", lambda _: "chaos", ValueError, "unknown regime 'chaos'; known: "),
    "steps": ("steps", lambda _: -1, ValueError, "steps, slots, reversed or classes out of range"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_operator_checks_what_it_is_given(case):
    name, change, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        OP(*changed(name, change))


def test_the_node_checks_task_dimensions():
    """It gives tensors one axis of tasks before the operator sees them."""
    named = dict(zip(NAMES, arguments(Case()), strict=True))
    x, y = named["x"][None].expand(2, *named["x"].shape), named["y"][None].expand(2, *named["y"].shape)
    for name, wrong in (("y", torch.tensor(0)), ("x", torch.ones(3)), ("y", y.transpose(0, 1))):
        given = named | {"x": x, name: wrong}
        with pytest.raises(ValueError, match=r"has not the tasks|x must be"):
            linear_unroll(*given.values())


def test_dual_coordinates_refuse_what_they_cannot_hold():
    given = dict(zip(NAMES, arguments(Case(), "dual"), strict=True))
    for more in ({"buffers0": given["w0"][None]}, {"reversed": 1}):
        with pytest.raises(ValueError, match="dual coordinates take no initial velocity and no truncation"):
            OP(*(given | more).values())


def test_only_primal_coordinates_take_a_step_that_is_not_linear():
    case = Case(optimizer="adam", variant="plain")
    with pytest.raises(ValueError, match="dual coordinates are not for the optimizer adam"):
        OP(*arguments(case, coordinates="dual"))


def test_a_plan_that_is_not_one_is_refused():
    """A slot or a step that is not there would be memory out of bounds; UNDO needs a step that has an inverse."""
    named = dict(zip(NAMES, arguments(Case()), strict=True))
    wrong = [encode(code, 99) for code in (Code.SAVE, Code.LOAD, Code.ADVANCE)] + [encode(Code.UNDO, 1)]
    for plan in wrong:
        with pytest.raises((ValueError, IndexError)):
            OP(*(named | {"plan": torch.tensor([plan], dtype=torch.int32)}).values())
    for plan in (named["plan"].long(), named["plan"][None], named["plan"].repeat(2)[::2]):
        with pytest.raises(ValueError, match="plan must be a contiguous int32 tensor"):
            OP(*(named | {"plan": plan}).values())


@pytest.mark.parametrize("coordinates", WAYS)
@pytest.mark.parametrize("label", [-100, 4, 10**9])
def test_a_label_out_of_range_gives_nan_and_touches_nothing_else(coordinates, label):
    """Labels are checked where that costs nothing; where they were not, the row must not write elsewhere."""
    args = list(arguments(Case(targets="labels"), coordinates))
    y = args[NAMES.index("y")].clone()
    y[1, 2] = label
    args[NAMES.index("y")] = y
    found, sound = linear_unroll(*args), linear_unroll(*arguments(Case(targets="labels"), coordinates))
    assert found.w[1].isnan().any() and found.status[1] == 1
    assert torch.equal(found.w[0], sound.w[0]) and torch.equal(found.w[2], sound.w[2])


def test_nan_features_make_the_first_iterate_bad_in_every_coordinates():
    for coordinates in WAYS:
        args = list(arguments(Case(), coordinates))
        x = args[NAMES.index("x")].clone()
        x[0, 0, 0] = float("nan")
        args[NAMES.index("x")] = x
        assert linear_unroll(*args).status.tolist() == [1, -1, -1]


@pytest.mark.parametrize("name", ["w_bar", "outer_bar", "logits_bar", "w", "logits", "trajectory"])
def test_the_backward_operator_checks_shapes(name):
    args = arguments(Case(objective="ml"))
    out = linear_unroll(*args)
    given = {
        "w_bar": torch.ones_like(out.w),
        "buffers_bar": None,
        "outer_bar": torch.ones_like(out.outer),
        "logits_bar": torch.ones_like(out.logits),
        "w": out.w,
        "logits": out.logits,
        "trajectory": out.trajectory,
    }
    given[name] = given[name][..., :1] if given[name].ndim > 1 else given[name][:1]
    with pytest.raises(ValueError, match=rf"{name} must be"):
        torch.ops.pybilevel.linear_unroll_backward(*given.values(), [True] * TENSORS, *args)


@pytest.mark.parametrize("coordinates", WAYS)
def test_what_nobody_asks_for_is_empty_and_the_rest_is_the_same(coordinates):
    case = Case(targets="soft", variant="momentum", objective="ml")
    args = arguments(case, coordinates)
    out = linear_unroll(*args)

    def backward(needs):
        bars = (None, None, torch.ones_like(out.outer), None)
        trajectory = out.trajectory.clone()
        return torch.ops.pybilevel.linear_unroll_backward(*bars, out.w, out.logits, trajectory, needs, *args)

    everything = backward([True] * TENSORS)
    for wanted in range(TENSORS):
        found = backward([i == wanted for i in range(TENSORS)])
        assert all(grad.numel() == 0 for i, grad in enumerate(found) if i != wanted)
        assert torch.equal(found[wanted], everything[wanted])
