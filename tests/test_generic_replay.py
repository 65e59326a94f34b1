"""What the backward half replays is what the forward half ran: other data is an error, never another gradient.

Where the graphs of all steps are kept nothing is replayed: the gradient is that of what ran, until a second backward.
"""

import pytest
import torch
from custom_functions import Sine
from generic_laws import STEPS, assert_law, generic, gradients, leaf
from tolerance import assert_matches

from pybilevel.engine import oracle
from pybilevel.problems import SoftmaxRegression
from pybilevel.schedules import StoreAll


def unrolled(inner, hparams=None, memory="auto"):
    return generic(inner, leaf(4, 3), hparams, lr=0.1, memory=memory).sum()


@pytest.mark.parametrize("memory", ["auto", StoreAll()], ids=str)
def test_captured_data_changed_in_place_before_the_backward_is_an_error_that_names_it(memory):
    x = torch.randn(5, 4).double()
    outer = unrolled(lambda w: (x @ w).cos().sum(), memory=memory)
    x.mul_(2)
    text = r"inner uses a tensor \[5, 4\] torch.float64, which was modified by an inplace operation.*a clone"
    with pytest.raises(RuntimeError, match=text):
        outer.backward()


def test_other_captured_data_in_a_replay_is_an_error_that_names_it():
    x = torch.randn(5, 4).double()
    outer = unrolled(lambda w: (x @ w).cos().sum(), memory=StoreAll())
    x = torch.randn(6, 4).double()
    text = r"inner uses a tensor \[6, 4\] torch.float64 in the backward but not in the forward.*hparams"
    with pytest.raises(RuntimeError, match=text):
        outer.backward()


def test_a_batch_changed_in_place_that_the_first_pass_did_not_see_is_an_error():
    xs = [torch.randn(5, 4).double() for _ in range(STEPS)]
    w = generic(lambda w, x: (x @ w).cos().sum(), leaf(4, 3), lr=0.1, batches=lambda t: xs[t])
    xs[STEPS - 1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_batches_that_are_drawn_once_are_those_of_the_plain_loop_or_an_error():
    """Where states are stored or a workspace is measured, the loss draws more of them than there are steps."""
    xs, w0 = torch.randn(3 * STEPS, 5, 4).double(), leaf(4, 3)

    def run(memory):
        drawn = iter(xs)
        w = generic(lambda w: (next(drawn) @ w).tanh().square().sum(), w0, lr=0.1, memory=memory)
        return w, gradients(w, {"w0": w0})["w0"]

    plain = generic(lambda w, x: (x @ w).tanh().square().sum(), w0, lr=0.1, batches=list(xs[:STEPS]))
    w, bar = run("auto")
    assert_matches(w, plain, "w")
    assert_matches(bar, gradients(plain, {"w0": w0})["w0"], "w0")
    for budget in range(4000, 40000, 4000):
        try:
            w, _ = run(budget)
        except RuntimeError as error:
            assert "another value in the backward" in str(error)
        else:
            assert_matches(w, plain, "w")
    with pytest.raises(RuntimeError, match="another value in the backward"):
        run(StoreAll())


def test_kept_graphs_are_those_of_what_ran_until_a_second_backward():
    x, w0 = torch.randn(5, 4).double(), leaf(4, 3)
    w = generic(lambda w: (x @ w).cos().sum(), w0, lr=0.1)
    expected = gradients(generic(lambda w, x=x: (x @ w).cos().sum(), w0, lr=0.1), {"w0": w0})
    x = torch.randn(6, 4).double()
    assert torch.equal(gradients(w, {"w0": w0})["w0"], expected["w0"])
    with pytest.raises(RuntimeError, match="in the backward but not in the forward"):
        gradients(w, {"w0": w0})


def test_integer_hparams_changed_in_place_are_an_error():
    index = torch.tensor([0, 2])
    outer = unrolled(lambda w, h: w[h["index"]].cos().sum(), {"index": index})
    index += 1
    with pytest.raises(RuntimeError, match=r"a tensor \[2\] torch.int64, which was modified by an inplace"):
        outer.backward()


def test_integer_labels_of_a_problem_changed_in_place_are_an_error():
    y = torch.tensor([0, 1, 2, 0, 1])
    outer = generic(SoftmaxRegression(leaf(5, 4), y), None, lr=0.1).sum()
    y.zero_()
    with pytest.raises(RuntimeError, match=r"a tensor \[5\] torch.int64, which was modified by an inplace"):
        outer.backward()


def test_a_loss_that_draws_its_own_batches_is_an_error():
    batches = [torch.randn(5, 4).double() for _ in range(30)]
    outer = unrolled(lambda w: (batches.pop() @ w).cos().sum(), memory=StoreAll())
    with pytest.raises(RuntimeError, match=r"inner gives another value.*draws a batch itself"):
        outer.backward()


def test_another_captured_number_is_an_error():
    scale = 1.0
    outer = unrolled(lambda w: scale * w.cos().sum(), memory=StoreAll())
    scale = 2.0
    with pytest.raises(RuntimeError, match=r"inner gives another value.*a number that it captures"):
        outer.backward()


def test_caches_branches_custom_functions_and_two_backwards_are_fine():
    x, positive, negative = (torch.randn(4, 4).double() for _ in range(3))
    w0, h, cache = leaf(4, 3), leaf(4, 3), {}

    def loss(w, h):
        gram = cache.setdefault("gram", x @ x.T) if "gram" not in cache else cache["gram"]
        side = positive if w.sum() > 0 else negative
        cache["last"] = Sine.apply(w)
        return ((gram + side) @ cache["last"] * h).cos().sum()

    assert_law(loss, w0, h, inputs={"w0": w0, "h": h}, lr=0.1)
    outer = generic(loss, w0, h, lr=0.1).sum()
    first, second = (torch.autograd.grad(outer, h, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_loss_that_differentiates_itself():
    w0, h, scale = leaf(4), leaf(4), leaf()

    def loss(w, h):
        value = scale * (w.cos() * h.sin()).sum()
        slopes = torch.autograd.grad(value, (w, h, scale), create_graph=True)
        return value + sum(slope.square().sum() for slope in slopes)

    def by_hand(w, h):
        value = (w.cos() * h.sin()).sum()
        slopes = (-scale * w.sin() * h.sin(), scale * w.cos() * h.cos(), value)
        return scale * value + sum(slope.square().sum() for slope in slopes)

    inputs = {"w0": w0, "h": h, "scale": scale}
    # the plain loop on `loss` itself would differ: there w carries the history of h and scale into the inner slopes
    exact, _ = oracle.unroll(by_hand, w0, h, steps=STEPS, lr=0.1)
    w = generic(loss, w0, h, lr=0.1)
    assert_matches(w, exact)
    for name, expected in gradients(exact, inputs).items():
        assert_matches(gradients(w, inputs)[name], expected, name)


def test_a_loss_that_differentiates_itself_in_the_parameters():
    w0, h = leaf(4), leaf(4)

    def loss(w, h):
        value = (w.cos() * h).sum()
        return value + torch.autograd.grad(value, w, create_graph=True)[0].square().sum()

    assert_law(loss, w0, h, inputs={"w0": w0, "h": h}, lr=0.1)
