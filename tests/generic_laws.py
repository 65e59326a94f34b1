"""Laws that hold for the generic engine whatever the inner loss: value and gradients are those of the plain loop."""

import torch
from tolerance import assert_matches
from torch.utils import _pytree as pytree

from pybilevel.engine import oracle
from pybilevel.engine.unroll import unroll
from pybilevel.methods import Reverse
from pybilevel.optimizers import SGD

STEPS = 7


def leaf(*shape, low=None):
    """A random float64 tensor that asks for gradients; positive, at least `low`, if that is given."""
    x = torch.randn(shape, dtype=torch.float64)
    return (x if low is None else x.abs() + low).requires_grad_()


def gradients(w, inputs):
    """Of one fixed nonlinear outer objective; zeros where the plain loop has None."""
    outer = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(pytree.tree_leaves(w)))
    found = torch.autograd.grad(outer, list(inputs.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(x) if g is None else g
        for (name, x), g in zip(inputs.items(), found, strict=True)
    }


def assert_same_run(run, other, inputs):
    """Bitwise, of pairs (w, state): values, buffers and every hypergradient, and again in a second backward."""
    for a, b in zip(*(pytree.tree_leaves((w, state.buffers)) for w, state in (run, other)), strict=True):
        assert torch.equal(a, b)
    expected = gradients(other[0], inputs)
    for _ in range(2):
        found = gradients(run[0], inputs)
        for name in inputs:
            assert torch.equal(found[name], expected[name]), name


def generic(
    inner, w0, hparams=None, *, steps=STEPS, lr, momentum=0.0, nesterov=False, weight_decay=0.0, **kwargs
):
    optimizer = SGD(lr, momentum, nesterov, weight_decay)
    return unroll(inner, w0, hparams, steps=steps, optimizer=optimizer, backend="generic", **kwargs)


def assert_law(
    inner,
    w0,
    hparams=None,
    *,
    inputs,
    truncate=None,
    batches=None,
    memory="auto",
    plain=None,
    generators=(),
    first_order=False,
    **settings,
):
    """Value and every gradient are those of the plain loop (on `plain`, if given); none is None.

    Both see the same random numbers, and leave torch's generator and `generators` in the same state.
    """
    generators = (torch.default_generator, *generators)
    reseed(generators)
    exact, _ = oracle.unroll(
        plain or inner,
        w0,
        hparams,
        steps=STEPS,
        truncate=truncate,
        batches=each(batches),
        first_order=first_order,
        **settings,
    )
    expected = gradients(exact, inputs)
    drawn = [generator.get_state() for generator in generators]
    reseed(generators)
    w = generic(
        inner, w0, hparams, method=Reverse(truncate, first_order), batches=batches, memory=memory, **settings
    )
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, drawn, strict=True))
    for a, b in zip(pytree.tree_leaves(w), pytree.tree_leaves(exact), strict=True):
        assert_matches(a, b, "w_T")
    outer = sum((x.sin() * (i + 1)).sum() for i, x in enumerate(pytree.tree_leaves(w)))
    found = torch.autograd.grad(outer, list(inputs.values()), retain_graph=True)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, drawn, strict=True))
    for (name, exact_gradient), actual in zip(expected.items(), found, strict=True):
        assert_matches(actual, exact_gradient, name)


def reseed(generators):
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)


def each(batches):
    """The batches of the steps as a list, from any form."""
    if batches is None or isinstance(batches, list):
        return batches
    if callable(batches) and not isinstance(batches, torch.Tensor):
        return [batches(t) for t in range(STEPS)]
    if hasattr(batches, "__getitem__") and not isinstance(batches, torch.Tensor | tuple | dict):
        return [batches[t] for t in range(STEPS)]
    return [pytree.tree_map(lambda x: x[t], batches) for t in range(STEPS)]  # noqa: B023 (called at once)


def network(w, h):
    """A two-layer network, with a regulariser a parameter, on pytrees."""
    hidden = torch.tanh(h["x"] @ w["in"]["weight"] + w["in"]["bias"])
    residual = hidden @ w["out"] - h["y"]
    return (
        residual.square().mean()
        + h["l2"][0] * w["in"]["weight"].square().sum()
        + h["l2"][1] * w["out"].cos().sum()
    )


def network_case():
    w0 = {"in": {"weight": leaf(4, 6), "bias": leaf(6)}, "out": leaf(6, 2)}
    hparams = {
        "x": leaf(5, 4),
        "y": leaf(5, 2),
        "l2": [leaf(low=0.0), leaf(low=0.0)],
        "name": "a constant",
        "count": 3,
    }
    inputs = {
        "weight": w0["in"]["weight"],
        "bias": w0["in"]["bias"],
        "out": w0["out"],
        "x": hparams["x"],
        "y": hparams["y"],
        "l2": hparams["l2"][0],
        "linear": hparams["l2"][1],
    }
    return w0, hparams, inputs
