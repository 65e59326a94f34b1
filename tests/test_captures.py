"""Tensors that a loss captures by closure, attribute or module get their gradients, or an error that names them."""

import pytest
import torch
import torch.nn.functional as F
from custom_functions import OnceSine, Square
from generic_laws import STEPS, assert_law, generic, gradients, leaf
from tolerance import assert_matches

from pybilevel.engine import oracle


def test_captured_leaves_and_derived_tensors_get_gradients():
    x, scale, w0 = leaf(5, 4), leaf(), leaf(4, 3)
    features = x * scale
    target = torch.randn(5, 3, dtype=torch.float64)

    def loss(w):
        return (torch.cat([features, features], 0) @ w - torch.cat((target, target))).square().mean()

    assert_law(loss, w0, inputs={"x": x, "scale": scale, "w0": w0}, lr=0.1)


def test_captured_w0_is_an_input_of_its_own():
    w0, pull = leaf(4), leaf()
    assert_law(
        lambda w: pull * (w - w0).square().sum() + w.cos().sum(), w0, inputs={"w0": w0, "pull": pull}, lr=0.1
    )


def test_module_parameters_get_gradients():
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()
    x, y, w0 = torch.randn(8, 4).double(), torch.arange(8) % 3, leaf(5, 3)
    inputs = {"w0": w0, **dict(encoder.named_parameters())}
    assert_law(lambda w: F.cross_entropy(encoder(x) @ w, y), w0, inputs=inputs, lr=0.3, momentum=0.5)


def test_a_module_as_parameters_by_functional_call():
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x, y = leaf(8, 4), torch.arange(8) % 3
    w0 = dict(net.named_parameters())

    def loss(w):
        return F.cross_entropy(torch.func.functional_call(net, w, (x,)), y)

    assert_law(loss, w0, inputs={"x": x, **w0}, lr=0.3, momentum=0.5)


def test_attributes_and_methods_capture_too():
    class Inner:
        def __init__(self):
            self.center = leaf(4)

        def __call__(self, w):
            return (w - self.center).square().sum()

    inner, w0 = Inner(), leaf(4)
    assert_law(inner, w0, inputs={"w0": w0, "center": inner.center}, lr=0.1)


def test_a_custom_function_of_a_captured_leaf_is_fine():
    scale, w0 = leaf(4), leaf(4)
    assert_law(lambda w: (Square.apply(scale) * w.cos()).sum(), w0, inputs={"scale": scale, "w0": w0}, lr=0.1)


def test_a_capture_that_cannot_be_replaced_is_an_error_that_names_it():
    net = torch.nn.Linear(4, 1).double()
    derived = 2 * net.weight
    with pytest.raises(ValueError, match=r"inner uses weight \[1, 4\] torch.float64 in a way that hides it"):
        generic(lambda w: (Square.apply(derived) * w + net.bias).sum(), leaf(4), lr=0.1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_of_a_captured_leaf_runs_once_on_its_whole_gradient(when):
    scale, w0, seen = leaf(4), leaf(4), []
    plain = generic(lambda w: (scale * w.cos()).sum(), w0, lr=0.1)
    expected = gradients(plain, {"scale": scale})["scale"]
    hook = (lambda: scale.register_hook(seen.append)) if when == "before" else lambda: None
    hook()
    w = generic(lambda w: (scale * w.cos()).sum(), w0, lr=0.1)
    if when == "after":
        scale.register_hook(seen.append)
    (found,) = torch.autograd.grad(w.sin().sum(), scale)
    assert len(seen) == 1 and torch.equal(seen[0], found)
    assert torch.equal(found, expected)


def test_a_capture_in_a_later_branch_is_an_error_that_names_it():
    late = leaf(4)

    def loss(w):
        return (w - (late if w.sum() > 0 else 1)).square().sum()

    with pytest.raises(
        ValueError, match=r"inner uses a tensor \[4\] torch.float64.*branch not taken at first"
    ):
        generic(loss, torch.full((4,), -1.0, dtype=torch.float64), lr=0.4)


def test_a_custom_function_of_the_parameters_is_fine():
    w0, h = leaf(4), leaf(4)
    assert_law(lambda w, h: (Square.apply(w) * h).sum(), w0, h, inputs={"w0": w0, "h": h}, lr=0.1)


def test_without_second_backward_forward_mode_takes_over_once_and_says_so():
    w0, h = leaf(4), leaf(4)
    with pytest.warns(UserWarning, match="no second backward") as seen:
        w = generic(lambda w, h: (OnceSine.apply(w) * h + w * w * h).sum(), w0, h, lr=0.1)
        found = gradients(w, {"w0": w0, "h": h})
    assert sum("no second backward" in str(warning.message) for warning in seen) == 1
    exact, _ = oracle.unroll(lambda w, h: (w.sin() * h + w * w * h).sum(), w0, h, steps=STEPS, lr=0.1)
    for name, expected in gradients(exact, {"w0": w0, "h": h}).items():
        assert_matches(found[name], expected, name)
