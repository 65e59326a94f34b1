"""Reverse mode without second derivatives: the plain loop whose inner gradients are detached."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, assert_law, generic, leaf, network, network_case
from optimizer_cases import CASES, VARIANTS
from optimizer_settings import assert_same, settings_of, solver
from tolerance import assert_matches

from pybilevel import explain
from pybilevel.engine import oracle
from pybilevel.engine.unroll import unroll
from pybilevel.errors import BackendError
from pybilevel.methods import Reverse
from pybilevel.optimizers import SGD
from pybilevel.problems import SoftmaxRegression
from pybilevel.schedules import Periodic, Revolve, StoreAll


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(3), Periodic(2)], ids=str)
@pytest.mark.parametrize("truncate", [None, 3])
def test_law_on_a_network(memory, truncate):
    w0, hparams, inputs = network_case()
    settings = {"lr": leaf(STEPS, low=0.05), "weight_decay": leaf(low=0.1)}
    settings["momentum"] = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    inputs |= settings
    assert_law(
        network, w0, hparams, inputs=inputs, truncate=truncate, memory=memory, first_order=True, **settings
    )


@pytest.mark.parametrize("name, variant", CASES)
def test_law_for_every_optimizer(name, variant):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, "scalar", w0)
    flags = VARIANTS[name][variant][1]
    exact, _ = oracle.unroll(
        network, w0, hparams, steps=STEPS, rule=name, first_order=True, **settings, **flags
    )
    optimizer = solver(name, variant, settings)
    w = unroll(network, w0, hparams, steps=STEPS, optimizer=optimizer, method=Reverse(first_order=True))
    assert_same(w, exact, inputs | leaves)


def test_law_with_batches_dropout_and_captured_tensors():
    w0, scale, batches = leaf(4, 3), leaf(), leaf(STEPS, 5, 4)

    def loss(w, x):
        return scale * F.dropout(torch.tanh(x @ w), 0.3).square().mean()

    inputs = {"w0": w0, "scale": scale, "x": batches}
    assert_law(loss, w0, inputs=inputs, batches=batches, memory=Revolve(2), first_order=True, lr=0.3)


def test_gradient_descent_gives_the_outer_gradient_at_the_end_and_zeros():
    w0, h, scale = leaf(4), leaf(4), leaf()
    w = generic(lambda w, h: scale * (w.cos() * h).sum(), w0, h, lr=0.1, method=Reverse(first_order=True))
    found = torch.autograd.grad(w.sin().sum(), (w0, h, scale))
    assert_matches(found[0], w.detach().cos())
    assert not found[1].any() and not found[2].any()


def test_it_needs_no_second_derivative():
    """Attention on the CPU's flash path has none."""
    w0 = leaf(2, 4, 3)
    w = generic(
        lambda w: F.scaled_dot_product_attention(w, w, w).square().sum(),
        w0,
        lr=0.1,
        method=Reverse(first_order=True),
    )
    w.sum().backward()
    assert torch.equal(w0.grad, torch.ones_like(w0))


def test_a_fused_problem_takes_it_in_the_generic_engine_and_says_so():
    x, w0, lr = leaf(5, 4), leaf(5, 3), leaf(low=0.1)
    problem, options = SoftmaxRegression(x, torch.arange(5) % 3), {"method": Reverse(first_order=True)}
    assert_law(problem, w0, inputs={"x": x, "w0": w0, "lr": lr}, first_order=True, lr=lr)
    explained = explain(unroll, problem, steps=3, optimizer=SGD(0.1), **options)
    assert explained.backend == "generic" and any(
        "first_order=True" in reason for reason in explained.reasons
    )
    with pytest.raises(BackendError, match="first_order=True"):
        unroll(problem, steps=3, optimizer=SGD(0.1), backend="fused", **options)
