"""The laws of unrolls under every inner optimizer: the plain loop's hypergradients, any plan's bits, continuation."""

import pytest
import torch
from generic_laws import STEPS, gradients, leaf, network, network_case
from optimizer_cases import CASES, VARIANTS
from optimizer_settings import assert_same, settings_of, solver
from tolerance import assert_matches
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel.engine import oracle

each_case = pytest.mark.parametrize("name, variant", CASES)
FORMS = ("scalar", "step", "parameter")


@pytest.mark.parametrize("form", FORMS)
@each_case
def test_plain_loop(name, variant, form):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, form, w0)
    inputs |= leaves
    flags = VARIANTS[name][variant][1]
    exact, _ = oracle.unroll(network, w0, hparams, steps=STEPS, rule=name, **settings, **flags)
    w = pb.unroll(network, w0, hparams, steps=STEPS, optimizer=solver(name, variant, settings))
    assert_same(w, exact, inputs)


@pytest.mark.parametrize("form", ["task", "both"])
@each_case
def test_tasks(name, variant, form):
    """A fused problem under the generic engine, with a value a task."""
    inputs = {"x": leaf(2, 5, 3), "y": leaf(2, 5, 2), "l2": leaf(2, low=0.1)}
    w0 = leaf(2, 4, 2)
    problem = pb.LeastSquares(**inputs)
    settings, leaves = settings_of(name, variant, form, w0, tasks=(2,))
    flags = VARIANTS[name][variant][1]
    exact, _ = oracle.unroll(problem, w0, steps=STEPS, rule=name, **settings, **flags)
    w = pb.unroll(problem, w0, steps=STEPS, optimizer=solver(name, variant, settings), backend="generic")
    assert_same(w, exact, {"w0": w0, **inputs, **leaves})


@each_case
def test_every_plan_gives_the_same_bits(name, variant):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, "scalar", w0)
    inputs |= leaves

    def found(memory):
        optimizer = solver(name, variant, settings)
        w = pb.unroll(network, w0, hparams, steps=STEPS, optimizer=optimizer, memory=memory)
        return gradients(w, inputs)

    expected = found(pb.StoreAll())
    for memory in (pb.Revolve(1), pb.Revolve(3), pb.Periodic(3), "1MiB"):
        actual = found(memory)
        for key in inputs:
            assert torch.equal(actual[key], expected[key]), (memory, key)


@pytest.mark.parametrize("first", [0, 1, 4, STEPS])
@each_case
def test_going_on_from_a_state(name, variant, first):
    """unroll(a + b) = unroll(b, state=unroll(a)): parameters, buffers and counts bitwise, and the gradients."""
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, "scalar", w0)
    inputs |= leaves
    options = {"optimizer": solver(name, variant, settings), "return_state": True}
    whole, last = pb.unroll(network, w0, hparams, steps=STEPS, **options)
    _, state = pb.unroll(network, w0, hparams, steps=first, **options)
    parts, end = pb.unroll(network, None, hparams, steps=STEPS - first, state=state, **options)
    for a, b in zip(
        pytree.tree_leaves((parts, end.buffers)), pytree.tree_leaves((whole, last.buffers)), strict=True
    ):
        assert torch.equal(a, b)
    expected, actual = gradients(whole, inputs), gradients(parts, inputs)
    for key in inputs:
        assert_matches(actual[key], expected[key], key)


@pytest.mark.parametrize("truncate", [1, 3, STEPS])
def test_truncation(truncate):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of("adam", "amsgrad", "step", w0)
    inputs |= leaves
    exact, _ = oracle.unroll(
        network, w0, hparams, steps=STEPS, rule="adam", truncate=truncate, amsgrad=True, **settings
    )
    optimizer = solver("adam", "amsgrad", settings)
    w = pb.unroll(
        network, w0, hparams, steps=STEPS, optimizer=optimizer, method=pb.Reverse(truncate=truncate)
    )
    assert_same(w, exact, inputs)


def test_the_initial_accumulator_is_differentiated():
    w0, hparams, inputs = network_case()
    start = leaf(low=0.1)
    inputs["initial"] = start
    settings = {"lr": 0.1, "eps": 1e-10, "initial_accumulator_value": start}
    exact, _ = oracle.unroll(network, w0, hparams, steps=STEPS, rule="adagrad", **settings)
    w = pb.unroll(network, w0, hparams, steps=STEPS, optimizer=pb.Adagrad(**settings))
    assert_same(w, exact, inputs)


@pytest.mark.parametrize("name, variant", [case for case in CASES if case[0] != "sgd"])
def test_parameters_that_never_get_a_gradient_change_nothing(name, variant):
    """Rows of an embedding that no example uses: no NaN, and for the rest what the loop without them gives."""
    settings, leaves = settings_of(name, variant, "scalar", None)
    leaves.pop("weight_decay0", None)
    settings.pop("weight_decay", None)
    w0, h = leaf(5, 3), leaf(3)
    used = torch.tensor([0, 2, 3])
    if name == "adamw":
        settings["weight_decay"] = 0.0

    def loss(w, h):
        return ((w[used] * h).sin() * w[used]).sum()

    def without(w, h):
        return ((w * h).sin() * w).sum()

    optimizer = solver(name, variant, settings)
    w = pb.unroll(loss, w0, h, steps=STEPS, optimizer=optimizer)
    exact, _ = oracle.unroll(
        without, w0[used], h, steps=STEPS, rule=name, **settings, **VARIANTS[name][variant][1]
    )
    assert torch.equal(w[[1, 4]], w0[[1, 4]])
    assert_same(w[used], exact, {"w0": w0, "h": h, **leaves})
