"""Powers of one step and their divided differences, against the same numbers in exact rational arithmetic."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from tolerance import assert_matches

from pybilevel import ops
from pybilevel.engine.spectral_powers import Rule, differences, power, weighted

EIGENVALUES = [0.0, 0.0, 1e-18, 0.3, 0.3 + 1e-15, 0.3 + 1e-9, 0.3 + 1e-4, 1.0, 1.0, 2.5, -1e-9]
"""Zero, repeated, a rounding apart, close, far, and a zero that rounding made negative."""

RULES = {
    "plain": (0.25, None, 0.0, False),
    "decay": (0.25, None, 0.0625, False),
    "momentum": (0.125, 0.875, 0.0, False),
    "nesterov": (0.125, 0.75, 0.0625, True),
    "momentum 0": (0.25, 0.0, 0.0, False),
    "at the edge": (0.8, None, 0.0, False),  # 1 - lr * 2.5 = -1
}


def column(value):
    return None if value is None else torch.tensor([value], dtype=torch.float64)


def rule(name):
    lr, momentum, decay, nesterov = RULES[name]
    return Rule(column(lr), column(momentum), column(decay), nesterov)


def exact_step(name, value, w, v, b):
    """One step of numbers, or of dual numbers, as the optimizer has it."""
    lr, momentum, decay, nesterov = RULES[name]
    g = (value + Fraction(decay)) * w - b
    mu = Fraction(momentum or 0)
    v = mu * v + g
    return w - Fraction(lr) * (g + mu * v if nesterov else v), v


def exact_power(name, value, steps):
    """The map of all steps, one column for each of the unit vectors w, (v,) b."""
    k = 1 if RULES[name][1] is None else 2
    columns = []
    for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        w, v, b = map(Fraction, unit)
        for _ in range(steps):
            w, v = exact_step(name, value, w, v, b)
        columns.append((w, v)[:k])
    del columns[k:2]
    return [list(row) for row in zip(*columns, strict=True)]


def exact_difference(name, x, y, steps):
    """f[x, y] as a quotient; where x = y at a distance that is far below all roundings."""
    x, y = Fraction(x), Fraction(y)
    y += Fraction(1, 10**40) if x == y else 0
    rows = zip(exact_power(name, x, steps), exact_power(name, y, steps), strict=True)
    return [[(p - q) / (x - y) for p, q in zip(a, b, strict=True)] for a, b in rows]


def assert_close(found, exact):
    """To a relative error of 1e-12 of the largest value: the step itself is rounded, and T = 13 adds to it."""
    exact = torch.tensor([[float(value) for value in row] for row in exact], dtype=torch.float64)
    scale = exact.abs().max().item() or 1.0
    assert (found - exact).abs().max().item() <= 1e-12 * scale


def pairs_of(step, slope, steps):
    """All divided differences at all pairs, by `weighted`, a weight of one on one entry after the other."""
    d = step[0][0].shape[-1]
    half = torch.full((d, d), 0.5, dtype=torch.float64)
    places = product(range(len(step)), range(len(step) + 1))
    return {place: weighted(step, slope, steps, {place: half}) for place in places}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 13, 24])
@pytest.mark.parametrize("name", RULES)
def test_powers_and_divided_differences_are_exact(name, steps, native, monkeypatch):
    monkeypatch.setattr(ops, "spectral_native", lambda _: native)
    values = torch.tensor(EIGENVALUES, dtype=torch.float64)
    step, d = rule(name).step(values), len(values)
    powers, pairs = power(step, steps), pairs_of(step, rule(name).slope(), steps)
    exact = [exact_power(name, Fraction(x), steps) for x in EIGENVALUES]
    exact_pairs = [[exact_difference(name, x, y, steps) for y in EIGENVALUES] for x in EIGENVALUES]
    for r, c in pairs:
        assert_close(powers[r][c].expand(d), [[f[r][c] for f in exact]])
        assert_close(pairs[r, c], [[f[r][c] for f in row] for row in exact_pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 4, 16, 17, 50])
@pytest.mark.parametrize("name", ["plain", "nesterov"])
def test_weights_of_several_entries_and_tasks(name, width, dtype):
    """The native operator and the sums of passes, on tiles that are whole, cut, and on the diagonal."""
    values = torch.rand(2, 3, width, dtype=torch.float64)
    lr, momentum, decay, nesterov = RULES[name]
    lrs = lr * torch.rand(2, 3, 1, dtype=torch.float64)
    some = Rule(lrs, column(momentum), column(decay), nesterov)
    step, slope = some.step(values), some.slope()
    places = [(r, c) for r in range(len(step)) for c in range(len(step) + 1)][1:]
    products = {place: torch.randn(2, 3, width, width, dtype=dtype) for place in places}
    found = weighted(step, slope, 300, products)
    pairs = differences(step, step, slope, 300, torch.float64)
    expected = sum(pairs[place] * products[place].double() for place in places)
    assert found.dtype == dtype and torch.equal(found, found.mT)
    assert_matches(found, expected + expected.mT)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - threads if threads < 3 else 1)
    again = weighted(step, slope, 300, products)
    torch.set_num_threads(threads)
    assert torch.equal(found, again)


def test_the_quotient_would_not_do():
    """What the product rule is for: a rounding apart, (f(x) - f(y)) / (x - y) has no correct digit."""
    x, y = 0.3, 0.3 + 1e-15
    step = rule("plain").step(torch.tensor([x, y], dtype=torch.float64))
    f = power(step, 13)[0][0]
    exact = float(exact_difference("plain", x, y, 13)[0][0])
    quotient = ((f[0] - f[1]) / (x - y)).item()
    assert abs(quotient / exact - 1) > 1e-2
    found = pairs_of(step, rule("plain").slope(), 13)[0, 0][0, 1].item()
    assert abs(found / exact - 1) < 1e-13


@pytest.mark.parametrize("name", ["plain", "momentum"])
def test_many_steps_lose_no_more_than_their_number(name):
    """A billion steps with l = 0, where powers of 1 must stay 1, and with 1 - lr l = 1 - 1e-9."""
    lr, momentum, _, _ = RULES[name]
    limit = lr / (1 - (momentum or 0.0))
    steps, values = 10**9, torch.tensor([0.0, 1e-9 / limit], dtype=torch.float64)
    w, b = power(rule(name).step(values), steps)[0][:: 1 if momentum is None else 2]
    assert w[0] == 1
    assert abs(b[0].item() / (limit * steps) - 1) < 1e-6
    assert abs(w[1].item() - torch.tensor(-1.0).exp().item()) < 1e-6
    pairs = pairs_of(rule(name).step(values), rule(name).slope(), steps)
    assert all(p.isfinite().all() for p in pairs.values())
