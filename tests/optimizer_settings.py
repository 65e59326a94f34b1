"""Settings of every optimizer as leaves, and the comparison of an unroll with the plain loop."""

import torch
from generic_laws import STEPS, gradients
from optimizer_cases import VARIANTS, build, optimizers
from tolerance import assert_matches
from torch.utils import _pytree as pytree


def settings_of(name, variant, form, w0, tasks=()):
    """The settings of a variant as leaves of this form, and these leaves by name."""
    generator = torch.Generator().manual_seed(1)

    def near(value, *shape):
        spread = 0.9 + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)
        return (value * spread).requires_grad_()

    settings, leaves = {}, {}
    for key, value in VARIANTS[name][variant][0].items():
        if form == "parameter":
            settings[key] = pytree.tree_map(lambda w, value=value: near(value, *w.shape), w0)
        else:
            shape = {"scalar": (), "step": (STEPS,), "task": (*tasks, 1), "both": (*tasks, STEPS)}[form]
            settings[key] = near(value, *shape)
        leaves |= {f"{key}{i}": x for i, x in enumerate(pytree.tree_leaves(settings[key]))}
    return settings, leaves


def solver(name, variant, settings):
    return build(optimizers()[name], **settings, **VARIANTS[name][variant][1])


def assert_same(w, exact, inputs):
    for a, b in zip(pytree.tree_leaves(w), pytree.tree_leaves(exact), strict=True):
        assert_matches(a, b, "w_T")
    expected, actual = gradients(exact, inputs), gradients(w, inputs)
    for key in inputs:
        assert_matches(actual[key], expected[key], key)
