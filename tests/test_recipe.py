"""Remembered calls: the same bits as those laid out anew, the same errors, and nothing remembered that may not be."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from linear_cases import PAIRS, ROWS, Built, Case, assert_same_bits, forced, fused, total
from linear_optimizers import USUAL
from recipe_calls import CALLS, NOT_REMEMBERED, OTHER_FORMS, WRONG, X, Y, adapt, solve
from torch import Tensor

import pybilevel as pb
from pybilevel.engine import fused as engine
from pybilevel.engine import layout as layouts
from pybilevel.engine import recipe
from pybilevel.objectives import meta
from pybilevel.ops.node import remembered_unrolls

pytestmark = pytest.mark.usefixtures("recipes")


def laid_out(call) -> bool:
    """Whether a call is laid out, not remembered."""
    with mock.patch.object(engine, "layout_of", wraps=engine.layout_of) as layout:
        call()
    return layout.called


def case_of(pair, **options) -> Case:
    loss, targets, _, optimizer, variant = pair
    return Case(loss, targets, optimizer, variant, **options)


@pytest.mark.parametrize("objective", ["ho", "ml"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_remembered_call_is_one_laid_out(pair, objective):
    """Value and all gradients of other numbers, after a call of the same form."""
    case = case_of(pair, objective=objective)
    other = dataclasses.replace(case, seed=1)
    with forced(pair[2]):
        expected = fused(other)
        recipe.forget()
        fused(case)
        assert not laid_out(lambda: fused(other))
        found = fused(other)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_so_is_an_unroll(row):
    case = case_of((*row, USUAL[row[-1]]), objective="state")

    def solve(seed: int) -> list[Tensor]:
        leaves = dataclasses.replace(case, seed=seed).inputs()
        built = Built(dataclasses.replace(case, seed=seed), leaves)
        w = pb.unroll(built.problem, built.w0, steps=case.steps, optimizer=built.solver())
        return [w, *torch.autograd.grad(total({"w": w}), list(leaves.values()))]

    with forced(row[2]):
        expected = solve(1)
        recipe.forget()
        solve(0)
        assert not laid_out(lambda: solve(1))
        assert all(map(torch.equal, solve(1), expected))


def perceptron(seed: int = 0, **options) -> list[Tensor]:
    """w_T, its loss, and their gradients."""
    torch.manual_seed(seed)
    w0 = [(w.requires_grad_(), b.requires_grad_()) for w, b in pb.MLP.init((4, 6, 2))]
    inner = pb.MLP(torch.randn(3, 5, 4), torch.randn(3, 5, 2), sizes=(4, 6, 2), activation="tanh")
    outer = pb.MLP(torch.randn(3, 5, 4), torch.randn(3, 5, 2), sizes=(4, 6, 2), activation="tanh", l2=0.1)
    lr = torch.rand((), requires_grad=True)
    leaves = [lr, *(t for pair in w0 for t in pair)]
    w = pb.unroll(inner, w0, steps=3, optimizer=pb.SGD(lr), **options)
    loss = pb.ho_objective(inner, outer, w0, steps=3, optimizer=pb.SGD(lr), **options)
    value = loss.sum() + sum(t.sum() for pair in w for t in pair)
    return [*(t for pair in w for t in pair), loss, *torch.autograd.grad(value, leaves)]


def test_and_a_perceptron():
    expected = perceptron(1)
    recipe.forget()
    perceptron(0)
    assert not laid_out(lambda: perceptron(1))
    assert all(map(torch.equal, perceptron(1), expected))


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_another_form_is_laid_out(name):
    solve()
    assert not laid_out(solve)
    assert laid_out(lambda: solve(**OTHER_FORMS[name]))
    assert not laid_out(lambda: solve(**OTHER_FORMS[name]))


def test_numbers_are_no_part_of_the_form():
    solve(lr=0.1, l2=0.1)
    assert not laid_out(lambda: solve(lr=0.2, l2=0.3))
    with mock.patch.object(recipe, "KEPT", 0):
        recipe.forget()
        expected = solve(lr=0.2, l2=0.3)
    solve(lr=0.1, l2=0.1)
    assert torch.equal(solve(lr=0.2, l2=0.3), expected)


def test_neither_is_what_the_backward_needs_where_none_will_come():
    x = X.clone().requires_grad_()
    solve(x)
    with torch.no_grad():
        assert laid_out(lambda: solve(x))
        assert not laid_out(lambda: solve(x))
        assert not solve(x).requires_grad
    assert solve(x).requires_grad


@pytest.mark.parametrize("name", NOT_REMEMBERED)
def test_what_is_not_remembered(name):
    NOT_REMEMBERED[name]()
    assert not remembered_unrolls()


def test_nor_inference():
    with torch.inference_mode():
        solve()
    assert not remembered_unrolls()
    assert solve(X.clone().requires_grad_()).requires_grad


def test_no_more_than_some_are_kept(monkeypatch):
    monkeypatch.setattr(recipe, "KEPT", 2)
    for steps in (1, 2, 3, 4, 5):
        solve(steps=steps)
        assert 1 <= remembered_unrolls() <= 2 and 1 <= len(recipe._families) <= 2


def outcome(call):
    """The result of a call and whether it can be differentiated, or its error."""
    try:
        w = call()
    except Exception as error:
        return type(error), str(error)
    return None if w is None else (w.dtype, w.requires_grad, w.tolist())


@pytest.mark.parametrize("first", CALLS)
def test_no_call_is_mistaken_for_another(first):
    for call in CALLS.values():
        recipe.forget()
        expected = outcome(call)
        recipe.forget()
        outcome(CALLS[first])
        assert outcome(call) == outcome(call) == expected


def test_a_number_of_numpy_is_a_number():
    solve(lr=0.1)
    assert not laid_out(lambda: solve(lr=np.float64(0.2)))


def test_a_long_plan_is_not_kept(monkeypatch):
    x = X.clone().requires_grad_()
    monkeypatch.setattr(recipe, "LONGEST", 10)
    solve(x, steps=20)
    assert not remembered_unrolls()
    solve(x, steps=2)
    assert remembered_unrolls()


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_a_first_call(name):
    kind, text, call = WRONG[name]
    solve(steps=1)
    solve(l2=0.1)
    solve(w0=torch.zeros(3, 5, 2))
    with pytest.raises(kind, match=text):
        call()


def test_tasks_are_adapted_without_problems():
    expected = adapt(X + 1)
    with mock.patch.object(meta, "problem_pair", side_effect=AssertionError):
        assert torch.equal(adapt(X + 1), expected)
        adapt(lr=0.2)


def test_labels_are_looked_at_all_the_same():
    adapt()
    for wrong in (Y + 1, Y - 1, Y.short() + 1):
        with pytest.raises(ValueError, match="y holds the label"):
            adapt(y=wrong)


def test_divergence_is_an_error():
    solve(lr=0.1)
    with pytest.raises(pb.DivergenceError) as caught:
        solve(X * 1e30, lr=1e30)
    assert caught.value.step == 1


def test_an_input_that_was_freed_is_named():
    x = X.clone().requires_grad_() * 2
    solve(x).sum().backward()
    with pytest.raises(RuntimeError, match="x or support"):
        solve(x).sum().backward()


def test_the_rules_of_layout_are_not_asked_again():
    solve()
    with mock.patch.object(layouts, "choose_coordinates", side_effect=AssertionError):
        solve()
