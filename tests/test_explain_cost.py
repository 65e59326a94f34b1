"""What `explain` says of operations, against the clock: the model and the measurement stay within a factor of 2."""

from __future__ import annotations

import math
import time
from unittest import mock

import pytest
import torch

import pybilevel as pb

pytestmark = pytest.mark.usefixtures("one_thread")

# Every kind of coordinates, with and without gradients of the features, large enough that products are what takes time.
SIZES = {
    "softmax dual": (pb.SoftmaxRegression, {"tasks": 8, "n": 64, "d": 400, "c": 16, "steps": 24}),
    "softmax primal": (pb.SoftmaxRegression, {"tasks": 2, "n": 1500, "d": 120, "c": 16, "steps": 20}),
    "squared dual": (pb.LeastSquares, {"tasks": 8, "n": 64, "d": 400, "c": 32, "steps": 30}),
    "squared normal": (pb.LeastSquares, {"tasks": 2, "n": 1500, "d": 120, "c": 32, "steps": 100}),
}


def inner(problem, features, tasks, n, d, c, steps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, n, d, generator=generator) / d**0.5
    y = torch.randn(tasks, n, c, generator=generator).softmax(-1)
    weights = torch.rand(tasks, n, generator=generator)
    return problem(x.requires_grad_(features), y, weights=weights.requires_grad_())


def call(problem, features, coordinates, **size):
    """A run of both halves, and its explanation, in these coordinates."""
    given = inner(problem, features, **size)
    rule = {"steps": size["steps"], "optimizer": pb.SGD(0.5), "backend": "fused"}
    with mock.patch("pybilevel.engine.layout.choose_coordinates", lambda *_: coordinates):
        explained = pb.explain(pb.unroll, given, **rule)

    def run():
        with mock.patch("pybilevel.engine.layout.choose_coordinates", lambda *_: coordinates):
            pb.unroll(given, **rule).sum().backward()

    return run, explained


def fastest(run, repeats=5):
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def test_operations_predict_time():
    """Seconds an operation are the same for all calls, within a factor of 2 of their geometric mean."""
    rates = {}
    for name, (problem, size) in SIZES.items():
        for features in (True, False):
            run, explained = call(problem, features, name.split()[1], **size)
            rates[name, features] = fastest(run) / explained.flops
    mean = math.exp(sum(map(math.log, rates.values())) / len(rates))
    off = {key: rate / mean for key, rate in rates.items()}
    assert all(1 / 2 < factor < 2 for factor in off.values()), off


@pytest.mark.parametrize("problem", [pb.SoftmaxRegression, pb.LeastSquares])
@pytest.mark.parametrize("n", [32, 800])
def test_the_coordinates_chosen_are_fast(problem, n):
    """On both sides of the crossovers, no other coordinates take less than half the time of those that are chosen."""
    size = {"tasks": 4, "n": n, "d": 160, "c": 12, "steps": 32}
    chosen = pb.explain(pb.unroll, inner(problem, True, **size), steps=32, optimizer=pb.SGD(0.5)).coordinates
    possible = ["primal", "dual"] + ["normal"] * (problem is pb.LeastSquares)
    times = {one: fastest(call(problem, True, one, **size)[0]) for one in possible}
    assert times[chosen] < 2 * min(times.values()), (chosen, times)
    assert chosen != "primal" or problem is pb.SoftmaxRegression
