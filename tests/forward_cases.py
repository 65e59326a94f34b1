"""Forward mode beside reverse mode."""

from generic_laws import STEPS, gradients
from tolerance import assert_matches

import pybilevel as pb


def forward(inner, w0, hparams=None, *, steps=STEPS, optimizer=None, **options):
    optimizer = optimizer or pb.SGD(0.1, 0.5)
    return pb.unroll(inner, w0, hparams, steps=steps, optimizer=optimizer, method=pb.Forward(), **options)


def assert_same(w, exact, inputs):
    expected, actual = gradients(exact, inputs), gradients(w, inputs)
    for name in inputs:
        assert_matches(actual[name], expected[name], name)


def assert_is_reverse(inner, w0, hparams, inputs, **options):
    options = {"steps": STEPS, "optimizer": pb.SGD(0.1, 0.5)} | options
    w, exact = forward(inner, w0, hparams, **options), pb.unroll(inner, w0, hparams, **options)
    assert_same(w, exact, inputs)


class Clipped:
    """Gradient descent with the gradient's norm clipped: it mixes the tasks of a parameter."""

    name = "clipped"

    def settings(self):
        return {"lr": 0.3}

    def init(self, w):
        return ()

    def step(self, w, g, buffers, settings):
        return w - settings["lr"] * g / (1 + g.square().sum()), ()
