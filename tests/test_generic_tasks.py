"""Tasks of a callable by in_dims: value and gradients are those of a plain loop over tasks, written for one task."""

import pytest
import torch
from generic_laws import STEPS, generic, gradients, leaf
from tolerance import assert_matches
from torch import nn
from torch.utils import _pytree as pytree

from pybilevel.engine import oracle
from pybilevel.problems import ModuleLoss
from pybilevel.schedules import Revolve, StoreAll

B = 3
PLANS = [StoreAll(), Revolve(3), "1MiB"]


def one(w, h, batch):
    """The loss of one task."""
    residual = torch.tanh(batch["x"] @ w["in"]) @ w["out"] - h["y"]
    return residual.square().mean() + h["l2"] * w["out"].square().sum()


def looped(loss, w_dims, h_dims):
    """The losses of all tasks by a loop, w with the tasks on axis 0."""

    def part(tree, dims, b):
        if isinstance(tree, dict):
            return {k: part(v, dims[k] if isinstance(dims, dict) else dims, b) for k, v in tree.items()}
        return tree if dims is None or not isinstance(tree, torch.Tensor) else tree.select(dims, b)

    def losses(w, *rest):
        h, batch = (rest if len(rest) == 2 else (None, *rest)) if rest else (None, None)
        return torch.stack(
            [
                loss(
                    part(w, 0, b),
                    *([] if h is None else [part(h, h_dims, b)]),
                    *([] if batch is None else [part(batch, 0, b)]),
                )
                for b in range(B)
            ]
        )

    return losses


def moved(w0, dims):
    """w0 with the tasks on axis 0, for the plain loop."""
    if isinstance(w0, dict):
        return {k: moved(v, dims[k] if isinstance(dims, dict) else dims) for k, v in w0.items()}
    return w0.expand(B, *w0.shape) if dims is None else w0.movedim(dims, 0)


W_DIMS = [0, None, {"in": 0, "out": None}, {"in": 2, "out": -1}]
H_DIMS = [{"y": 0, "l2": None, "name": None}, {"y": 1, "l2": 0, "name": None}, None]


def parameters(dims):
    def make(shape, dim):
        if dim is None:
            return leaf(*shape)
        axis = dim % (len(shape) + 1)
        return leaf(*shape[:axis], B, *shape[axis:])

    every = dims if isinstance(dims, dict) else {"in": dims, "out": dims}
    return {"in": make((4, 5), every["in"]), "out": make((5, 2), every["out"])}


def hyperparameters(dims):
    dims = dims or {"y": None, "l2": None}
    y = {None: (6, 2), 0: (B, 6, 2), 1: (6, B, 2)}[dims["y"]]
    return {"y": leaf(*y), "l2": leaf(*([] if dims["l2"] is None else [B]), low=0.1), "name": "a constant"}


def named(w0, h):
    return {f"w {k}": v for k, v in w0.items()} | {k: v for k, v in h.items() if isinstance(v, torch.Tensor)}


def check(loss, w0, h, w_dims, h_dims, inputs, **options):
    """assert_law, the plain loop on w0 with the tasks in front."""
    memory, batches = options.pop("memory", "auto"), options.pop("batches", None)
    exact, _ = oracle.unroll(
        looped(loss, w_dims, h_dims),
        moved(w0, w_dims),
        h,
        steps=STEPS,
        batches=None if batches is None else [pytree.tree_map(lambda x: x[t], batches) for t in range(STEPS)],  # noqa: B023
        **options,
    )
    w = generic(loss, w0, h, in_dims=(w_dims, h_dims), batches=batches, memory=memory, **options)
    for a, b in zip(pytree.tree_leaves(w), pytree.tree_leaves(exact), strict=True):
        assert_matches(a, b, "w_T")
    expected = gradients(exact, inputs)
    outer = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(pytree.tree_leaves(w)))
    for (name, actual), g in zip(
        expected.items(), torch.autograd.grad(outer, list(inputs.values())), strict=True
    ):
        assert_matches(g, actual, name)


# ------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("w_dims", W_DIMS, ids=str)
@pytest.mark.parametrize("h_dims", H_DIMS, ids=str)
def test_law_for_every_way_to_share(w_dims, h_dims):
    w0, h = parameters(w_dims), hyperparameters(h_dims)
    batches = {"x": leaf(STEPS, B, 6, 4)}
    inputs = named(w0, h) | batches
    check(one, w0, h, w_dims, h_dims, inputs, batches=batches, lr=0.1)


SETTINGS = {
    "number": lambda: 0.1,
    "scalar": lambda: leaf(low=0.05),
    "step": lambda: leaf(STEPS, low=0.05),
    "task": lambda: leaf(B, 1, low=0.05),
    "both": lambda: leaf(B, STEPS, low=0.05),
    "parameter": lambda: {"in": leaf(B, 4, 5, low=0.05), "out": leaf(low=0.05)},
    "parameter, shared": lambda: {"in": leaf(4, 5, low=0.05), "out": leaf(5, 2, low=0.05)},
}


@pytest.mark.parametrize("form", SETTINGS)
@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_for_every_form_of_setting(form, memory):
    w0, h, batches, lr = parameters(0), hyperparameters(None), {"x": leaf(STEPS, B, 6, 4)}, SETTINGS[form]()
    rates = {f"lr {i}": x for i, x in enumerate(pytree.tree_leaves(lr)) if isinstance(x, torch.Tensor)}
    momentum = torch.tensor(0.5).double().requires_grad_()
    inputs = named(w0, h) | batches | rates | {"momentum": momentum}
    check(one, w0, h, 0, None, inputs, batches=batches, memory=memory, lr=lr, momentum=momentum)


def test_captured_tensors_are_shared_by_the_tasks():
    scale, x, w0 = leaf(), leaf(6, 4), leaf(B, 4)
    features = x * scale
    check(
        lambda w, batch: (features @ w - batch).square().mean(), w0, None, 0, None,
        {"w0": w0, "x": x, "scale": scale}, batches=torch.randn(STEPS, B, 6).double(), lr=0.1,
    )  # fmt: skip


def test_module_agnostic_meta_learning():
    """w0 shared and learned, the tasks in the batches alone."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inner = ModuleLoss(net, lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean())
    w0, batches = inner.parameters(), {"x": leaf(STEPS, B, 6, 4), "y": leaf(STEPS, B, 6, 2)}

    def plain(w, batch):
        hidden = torch.tanh(batch["x"] @ w["0.weight"].T + w["0.bias"])
        return (hidden @ w["2.weight"].T + w["2.bias"] - batch["y"]).square().mean()

    w = generic(inner, w0, in_dims=(None, None), batches=batches, lr=0.1)
    assert w["0.weight"].shape == (B, 5, 4)
    inputs = dict(net.named_parameters()) | batches
    stacked = moved(w0, None)
    each = [{k: v[t] for k, v in batches.items()} for t in range(STEPS)]
    exact, _ = oracle.unroll(looped(plain, 0, None), stacked, steps=STEPS, lr=0.1, batches=each)
    expected = gradients(exact, inputs)
    for name, actual in gradients(w, inputs).items():
        assert_matches(actual, expected[name], name)


def test_no_batches_and_no_hparams():
    w0 = leaf(B, 4)
    check(lambda w: w.cos().sum(), w0, None, 0, None, {"w0": w0}, lr=0.1)


@pytest.mark.parametrize("batches", ["list", "function"])
def test_batches_in_other_forms(batches):
    w0, data = leaf(4), torch.randn(STEPS, B, 4).double()
    forms = {"list": list(data), "function": lambda t: data[t]}
    w, same = (
        generic(lambda w, x: (w * x).cos().sum(), w0, in_dims=(None, None), batches=form, lr=0.1)
        for form in (forms[batches], data)
    )
    assert torch.equal(w, same)


def test_a_function_that_draws_its_batches_gives_the_number_of_tasks_and_draws_no_more():
    w0 = leaf(4)

    def draw(t):
        return torch.randn(B, 4).double()

    torch.manual_seed(0)
    generic(lambda w, x: (w * x).cos().sum(), w0, in_dims=(None, None), batches=draw, lr=0.1)
    end = torch.get_rng_state()
    torch.manual_seed(0)
    for t in range(STEPS):
        draw(t)
    assert torch.equal(torch.get_rng_state(), end)


def test_state_law():
    w0, h, x = parameters(None), hyperparameters(None), leaf(STEPS, B, 6, 4)
    options = {"lr": leaf(B, 1, low=0.1), "momentum": 0.5, "in_dims": (None, None), "return_state": True}
    whole, _ = generic(one, w0, h, batches={"x": x}, **options)
    _, state = generic(one, w0, h, steps=3, batches={"x": x[:3]}, **options)
    w, last = generic(one, None, h, steps=STEPS - 3, batches={"x": x[3:]}, state=state, **options)
    assert last.step == STEPS and all(torch.equal(w[k], whole[k]) for k in w)
    inputs = named(w0, h) | {"x": x}
    expected = gradients(whole, inputs)
    for name, actual in gradients(w, inputs).items():
        assert_matches(actual, expected[name], name)


@pytest.mark.parametrize("tasks", [0, 1])
def test_no_task_and_one_task(tasks):
    w0, h = leaf(tasks, 4), leaf(4)
    w = generic(lambda w, h: (w * h).cos().sum(), w0, h, in_dims=(0, None), lr=0.1)
    w.sum().backward()
    assert w.shape == (tasks, 4) and h.grad.shape == (4,)
    if tasks:
        alone = generic(lambda w, h: (w * h).cos().sum(), w0[0], h, lr=0.1)
        assert_matches(w[0], alone)


def test_no_steps():
    w0 = leaf(4)
    w = generic(lambda w, h: (w * h).sum(), w0, leaf(B), in_dims=(None, 0), steps=0, lr=0.1)
    assert torch.equal(w, w0.expand(B, 4))
