"""Forward mode on every kind of input: shared tensors, modules, hard operations, batches, random losses, tasks."""

import pytest
import torch
from custom_functions import NoVmap, OnceSine
from forward_cases import Clipped, assert_is_reverse, assert_same, forward
from generic_laws import STEPS, leaf

import pybilevel as pb

# ------------------------------------------------------------------------------------------------ what it is given


def test_one_tensor_in_several_places():
    """w0 that the loss regularises towards, twice in hparams, and captured."""
    w0, c = leaf(4), leaf(4)

    def inner(w, h):
        return ((w - h["prior"]).square() * h["again"].exp()).sum() + (w * c).sin().sum() + h["c"].dot(w)

    assert_is_reverse(inner, w0, {"prior": w0, "again": w0, "c": c}, {"w0": w0, "c": c})


def test_modules_and_non_leaf_inputs():
    net, raw, w0 = torch.nn.Linear(3, 2).double(), leaf(), leaf(3)
    x = torch.randn(5, 3).double()

    def inner(w):
        return (net(x * w).square().sum(1) * raw.exp()).mean()

    assert_is_reverse(inner, w0.tanh(), None, {"w": net.weight, "b": net.bias, "raw": raw, "w0": w0})


def test_a_loss_that_differentiates_itself():
    w0, h = leaf(4), leaf(4)

    def inner(w, h):
        (g,) = torch.autograd.grad((w.sin() * h).sum(), w, create_graph=True)
        return g.square().sum() + w.cos().sum()

    assert_is_reverse(inner, w0, h, {"w0": w0, "h": h})


def test_a_loss_that_does_not_depend_on_anything():
    w0, h, lr = leaf(4), leaf(4), leaf(low=0.1)
    inputs = {"w0": w0, "h": h, "lr": lr}
    assert_is_reverse(lambda w, h: h.sum(), w0, h, inputs, optimizer=pb.SGD(lr))
    assert_is_reverse(lambda w, h: w.sum(), w0, h, inputs, optimizer=pb.SGD(lr))


def test_no_rule_for_vmap_is_announced():
    w0, h = leaf(4), leaf(4)

    def inner(w, h):
        return (NoVmap.apply(w) * h).sum()

    exact = pb.unroll(inner, w0, h, steps=STEPS, optimizer=pb.SGD(0.1))
    with pytest.warns(UserWarning, match="does not run under vmap; tangents are taken one by one"):
        w = forward(inner, w0, h, optimizer=pb.SGD(0.1))
    assert_same(w, exact, {"w0": w0, "h": h})


def test_no_second_backward_is_announced():
    w0, h = leaf(4), leaf(4)
    with pytest.warns(UserWarning, match="no second backward.*once_differentiable"):
        w = forward(lambda w, h: (OnceSine.apply(w) * h).sum(), w0, h)
    exact = pb.unroll(lambda w, h: (w.sin() * h).sum(), w0, h, steps=STEPS, optimizer=pb.SGD(0.1, 0.5))
    assert_same(w, exact, {"w0": w0, "h": h})


class Closed(torch.autograd.Function):
    """The identity, with neither a second backward nor a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, bar):
        return bar.clone()


class Opaque(Clipped):
    def step(self, w, g, buffers, settings):
        return Closed.apply(w - settings["lr"] * g), ()


class Unbatched(Clipped):
    """Its step has a second backward, and no rule for vmap there."""

    def step(self, w, g, buffers, settings):
        return NoVmap.apply(NoVmap.apply(w - settings["lr"] * g)), ()


class Forwards(Clipped):
    """Its step has a forward derivative only."""

    def step(self, w, g, buffers, settings):
        return OnceSine.apply(w - settings["lr"] * g), ()


@pytest.mark.parametrize("optimizer", [Unbatched, Forwards])
def test_steps_that_are_hard_to_differentiate(optimizer):
    w0, h = leaf(4), leaf(4)
    assert_is_reverse(lambda w, h: (w * h).cos().sum(), w0, h, {"w0": w0, "h": h}, optimizer=optimizer())


def test_a_step_without_forward_derivative_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"optimizer's step.*forward mode.*plain torch.*pb.Reverse\(\)"):
        forward(lambda w: w.cos().sum(), leaf(4), optimizer=Opaque())


# ------------------------------------------------------------------------------------------------ batches, randomness


def test_learnable_batches():
    w0, h, batches = leaf(4), leaf(4), leaf(STEPS, 6, 4)

    def inner(w, h, batch):
        return (batch @ w - (h * w).sum()).square().mean()

    assert_is_reverse(inner, w0, h, {"w0": w0, "h": h, "batches": batches}, batches=batches)


def test_batches_of_rows_of_a_problem():
    x, l2 = leaf(6, 3), leaf(low=0.1)
    inner = pb.SoftmaxRegression(x, torch.arange(6) % 3, l2=l2)
    rows = torch.randint(6, (STEPS, 4))
    w0 = leaf(4, 3)
    assert_is_reverse(inner, w0, None, {"x": x, "l2": l2, "w0": w0}, batches=rows)


def test_dropout_is_that_of_the_plain_loop():
    x, w0, h = torch.randn(8, 4).double(), leaf(4), leaf(4)

    def inner(w, h):
        return (torch.nn.functional.dropout(x, 0.5) @ (w * h)).sin().square().mean()

    torch.manual_seed(3)
    exact = pb.unroll(inner, w0, h, steps=STEPS, optimizer=pb.SGD(0.1, 0.5))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    w = forward(inner, w0, h)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(w, exact, {"w0": w0, "h": h})
    torch.manual_seed(3)
    _, state = forward(inner, w0, h, steps=3, return_state=True)
    torch.randn(5)  # someone else draws
    w = forward(inner, None, h, steps=STEPS - 3, state=state)
    assert_same(w, exact, {"w0": w0, "h": h})


def test_an_input_whose_graph_was_freed_is_named():
    """What is computed anew in every call is another variable in every call, and the old one's graph goes."""
    raw, w0, state = leaf(), leaf(4), None
    for i in range(2):
        w, state = pb.unroll(
            lambda w, h: h * w.square().sum(),
            None if state else w0,
            raw.exp() * raw,
            steps=1,
            optimizer=pb.SGD(0.1),
            method=pb.Forward(),
            state=state,
            return_state=True,
        )
        if i == 0:
            w.sum().backward()
    with pytest.raises(RuntimeError, match=r"theta\[0\], of shape \[\], .* freed its graph"):
        w.sum().backward()


# ------------------------------------------------------------------------------------------------ tasks of a callable


def regression(w, h):
    return (h["x"] @ w["w"] - h["y"]).square().mean() + h["l2"].exp() * w["w"].square().sum()


@pytest.mark.parametrize("optimizer", [pb.SGD, pb.Adam])
def test_tasks_of_a_callable(optimizer):
    """A shared w0, hparams of each task on axis 0 and 1, shared ones, and rates of each task."""
    w0, h = {"w": leaf(3)}, {"x": leaf(4, 5, 3), "y": leaf(5, 4), "l2": leaf()}
    lr = leaf(4, 1, low=0.01)
    in_dims = (None, {"x": 0, "y": 1, "l2": None})
    inputs = {"w0": w0["w"], **h, "lr": lr}
    assert_is_reverse(regression, w0, h, inputs, optimizer=optimizer(lr / 10), in_dims=in_dims)
    explained = pb.explain(
        pb.unroll,
        regression,
        w0,
        h,
        steps=STEPS,
        optimizer=optimizer(lr / 10),
        in_dims=in_dims,
        method=pb.Forward(),
    )
    # w0 and x, y is seen whole since its tasks are not in front, l2, and one rate a task
    assert explained.tangents == 3 + 5 * 3 + 5 * 4 + 1 + 1


def test_a_tensor_that_is_a_task_s_here_and_everybody_s_there():
    w0, h = leaf(4, 3), leaf(4, 3)

    def inner(w, mine):
        return (w * mine).cos().sum() + (h.sum() * w).sin().sum() + (w - w0.mean(0)).square().sum()

    assert_is_reverse(inner, w0, h, {"w0": w0, "h": h}, in_dims=(0, 0))


def test_a_rate_for_each_parameter_where_tasks_are_as_many_as_steps():
    x, w0 = leaf(STEPS, 5, 3), leaf(STEPS, 4, 3)
    inner = pb.SoftmaxRegression(x, torch.arange(5).expand(STEPS, 5) % 3)
    lr = leaf(STEPS, STEPS, 4, 3, low=0.1)
    assert_is_reverse(inner, w0, None, {"x": x, "w0": w0, "lr": lr}, optimizer=pb.SGD(lr), backend="generic")
