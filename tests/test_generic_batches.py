"""Mini-batches in every form: value and gradients are those of the plain loop, under every schedule."""

import pytest
import torch
from generic_laws import STEPS, assert_law, each, generic, gradients, leaf
from tolerance import assert_matches

from pybilevel.engine.unroll import unroll
from pybilevel.errors import DivergenceError
from pybilevel.optimizers import SGD
from pybilevel.schedules import Revolve, StoreAll

PLANS = [StoreAll(), Revolve(3), Revolve(1), "64KiB"]


def loss(w, h, batch):
    x, y = batch["x"], batch["y"]
    return h * (torch.tanh(x @ w) - y).square().mean() + w.cos().sum()


def data(steps=STEPS, learnable=True):
    x, y = torch.randn(steps, 5, 4).double(), torch.randn(steps, 5, 3).double()
    return {"x": x, "y": y.requires_grad_(learnable)}


class Lazy:
    """A map-style data set, which makes its items when asked."""

    def __init__(self, batches):
        self.batches, self.asked = batches, 0

    def __len__(self):
        return STEPS

    def __getitem__(self, t):
        self.asked += 1
        return {name: x[t].clone() for name, x in self.batches.items()}


# ------------------------------------------------------------------------------------------------ the forms


@pytest.mark.parametrize("memory", PLANS, ids=str)
@pytest.mark.parametrize("truncate", [None, 3])
def test_law_on_stacked_batches(memory, truncate):
    w0, h, batches = leaf(4, 3), leaf(low=0.5), data()
    inputs = {"w0": w0, "h": h, "y": batches["y"]}
    assert_law(loss, w0, h, inputs=inputs, batches=batches, memory=memory, truncate=truncate, lr=0.1)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_on_a_list_of_learnable_batches(memory):
    w0, h = leaf(4, 3), leaf(low=0.5)
    batches = [{"x": leaf(5, 4), "y": torch.randn(5, 3).double()} for _ in range(STEPS)]
    inputs = {"w0": w0, "h": h} | {f"x{t}": batch["x"] for t, batch in enumerate(batches)}
    assert_law(loss, w0, h, inputs=inputs, batches=batches, memory=memory, lr=0.1, momentum=0.5)


def test_law_on_batches_of_different_sizes():
    w0, h = leaf(4, 3), leaf(low=0.5)
    batches = [
        {"x": torch.randn(b, 4).double(), "y": torch.randn(b, 3).double()} for b in range(1, STEPS + 1)
    ]
    assert_law(loss, w0, h, inputs={"w0": w0, "h": h}, batches=batches, lr=0.1)


def test_law_on_a_function_of_the_step_and_what_it_captures():
    w0, h, x, scale = leaf(4, 3), leaf(low=0.5), leaf(9, 4), leaf()
    features = x * scale
    y = torch.randn(9, 3).double()

    def batch(t):
        rows = torch.arange(t, t + 3)
        return {"x": features[rows], "y": y[rows]}

    inputs = {"w0": w0, "h": h, "x": x, "scale": scale}
    assert_law(loss, w0, h, inputs=inputs, batches=batch, memory=Revolve(2), lr=0.1)


def test_law_on_lazy_items():
    w0, h, batches = leaf(4, 3), leaf(low=0.5), Lazy(data(learnable=False))
    assert_law(loss, w0, h, inputs={"w0": w0, "h": h}, batches=batches, lr=0.1)
    assert batches.asked > STEPS


def test_a_tensor_is_a_batch_too_and_hparams_may_be_missing():
    w0, x = leaf(4), leaf(STEPS, 4)
    assert_law(lambda w, x: (w * x).cos().sum(), w0, inputs={"w0": w0, "x": x}, batches=x, lr=0.1)


def test_non_contiguous_and_expanded_batches():
    w0, x = leaf(4), leaf(4, STEPS)
    assert_law(lambda w, x: (w * x).cos().sum(), w0, inputs={"w0": w0, "x": x}, batches=x.T, lr=0.1)
    one = leaf(4)
    batches = one.expand(STEPS, 4)
    assert_law(lambda w, x: (w * x).cos().sum(), w0, inputs={"w0": w0, "x": one}, batches=batches, lr=0.1)


def test_a_state_begins_its_batches_anew():
    w0, h, batches = leaf(4, 3), leaf(low=0.5), data(learnable=False)
    whole = generic(loss, w0, h, batches=batches, lr=0.1)
    first, rest = ({name: x[part] for name, x in batches.items()} for part in (slice(3), slice(3, None)))
    _, state = generic(loss, w0, h, steps=3, batches=first, lr=0.1, return_state=True)
    w = generic(loss, None, h, steps=STEPS - 3, batches=rest, lr=0.1, state=state)
    assert torch.equal(w, whole)
    for name, expected in gradients(whole, {"w0": w0, "h": h}).items():
        assert_matches(gradients(w, {"w0": w0, "h": h})[name], expected, name)


@pytest.mark.parametrize("batches", [[], {"x": torch.zeros(0, 5, 4), "y": torch.zeros(0, 5, 3)}], ids=str)
def test_no_steps_need_no_batch(batches):
    w0, h = leaf(4, 3), leaf()
    w = generic(loss, w0, h, steps=0, batches=batches, lr=0.1)
    assert torch.equal(w, w0)
    assert torch.equal(torch.autograd.grad(w.sum(), h)[0], torch.zeros_like(h))


# ------------------------------------------------------------------------------------------------ what is noticed


def test_a_batch_changed_before_the_backward_is_an_error():
    for batches in (data(learnable=False), each(data(learnable=False))):
        w = generic(loss, leaf(4, 3), leaf(), batches=batches, lr=0.1)
        (batches["x"] if isinstance(batches, dict) else batches[4]["x"]).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            w.sum().backward()


def test_a_list_of_batches_may_be_refilled_before_the_backward():
    batches, h = each(data(learnable=False)), leaf()
    expected = torch.autograd.grad(
        generic(loss, w0 := leaf(4, 3), h, batches=list(batches), lr=0.1).sum(), h
    )[0]
    w = generic(loss, w0, h, batches=batches, lr=0.1)
    batches[:] = [None] * STEPS
    assert torch.equal(torch.autograd.grad(w.sum(), h)[0], expected)


def test_a_function_that_gives_other_batches_the_second_time_is_an_error():
    w = generic(loss, leaf(4, 3), leaf(), batches=iter_like(), lr=0.1, memory=StoreAll())
    with pytest.raises(RuntimeError, match=r"another value in the backward.*batches"):
        w.sum().backward()


def iter_like():
    drawn = iter(each(data(learnable=False)) + each(data(learnable=False)))
    return lambda t: next(drawn)


def test_a_learnable_batch_of_a_later_step_of_a_function_is_an_error_that_names_it():
    batches = each(data())
    with pytest.raises(
        ValueError, match=r"a tensor \[7, 5, 3\] torch.float64.*a later step.*a list of batches"
    ):
        generic(loss, leaf(4, 3), leaf(), batches=lambda t: batches[t], lr=0.1)


def test_divergence_under_batches_names_the_step():
    scale = torch.ones(STEPS, 1).double()
    scale[2] = 1e200
    with pytest.raises(DivergenceError) as caught:
        generic(lambda w, s: (s * w).square().sum(), leaf(3), batches=scale, lr=0.1)
    assert caught.value.step == 3


def quadratic(w, batch):
    return (w * batch).square().sum()


W = torch.randn(4)
RAGGED = [torch.ones(1, requires_grad=True), torch.ones(4), torch.ones(4)]
MIXED = [(torch.ones(4, requires_grad=True),), torch.ones(4), torch.ones(4)]


def call(batches, inner=quadratic, w0=W, **kwargs):
    return unroll(inner, w0, batches=batches, **({"steps": 3, "optimizer": SGD(0.1)} | kwargs))


ERRORS = {
    "iterator": (lambda: call(iter([1, 2, 3])), TypeError, "batches is a list_iterator.*islice"),
    "generator": (lambda: call(x for x in range(3)), TypeError, "batches is a generator.*islice"),
    "loader": (lambda: call(torch.utils.data.DataLoader([1, 2, 3])), TypeError, "is a DataLoader.*islice"),
    "number": (lambda: call(3), TypeError, "batches must be a tensor, tuple or dict.*got 3"),
    "list length": (lambda: call([W] * 4), ValueError, "has 4 batches but there are 3 steps.*a tuple"),
    "lazy length": (lambda: call(Lazy({})), ValueError, f"has {STEPS} batches but there are 3 steps"),
    "stack length": (
        lambda: call((W, torch.ones(3))),
        ValueError,
        r"leaf 0 of batches has shape \[4\].*3 steps",
    ),
    "stack scalar": (lambda: call(torch.ones(())), ValueError, r"leaf 0 of batches has shape \[\]"),
    "stack number": (
        lambda: call({"a": torch.ones(3), "b": 3}),
        TypeError,
        "leaf 1 of batches is a int.*hparams",
    ),
    "stack empty": (lambda: call(()), ValueError, "batches holds no tensors"),
    "ragged": (
        lambda: call(RAGGED),
        ValueError,
        "leaf 0 of the batches requires a gradient and has different",
    ),
    "mixed": (lambda: call(MIXED), ValueError, r"batches\[1\] has the structure"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_batches_say_what_and_what_to_do(case):
    attempt, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        attempt()
