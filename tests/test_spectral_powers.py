"""Powers of one step and their divided differences, against the same numbers in exact rational arithmetic."""

from fractions import Fraction
from itertools import product

import pytest
import torch

from pybilevel.engine import spectral_powers
from pybilevel.engine.spectral_powers import Rule, differences, power

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


@pytest.mark.parametrize("radix", [None, 2, 4])
@pytest.mark.parametrize("steps", [1, 2, 13, 24])
@pytest.mark.parametrize("name", RULES)
def test_powers_and_divided_differences_are_exact(name, steps, radix, monkeypatch):
    """At once, and in digits of a small radix: one block, all digits, and zeros at the end."""
    if radix:
        monkeypatch.setattr(spectral_powers, "RADIX", radix)
    values = torch.tensor(EIGENVALUES, dtype=torch.float64)
    step, d = rule(name).step(values), len(values)
    powers = power(step, steps)
    places = list(product(range(len(step)), range(len(step) + 1)))
    pairs = differences(step, rule(name).slope(), steps, torch.float64, places)
    exact = [exact_power(name, Fraction(x), steps) for x in EIGENVALUES]
    exact_pairs = [[exact_difference(name, x, y, steps) for y in EIGENVALUES] for x in EIGENVALUES]
    for r in range(len(step)):
        for c in range(len(step) + 1):
            assert_close(powers[r][c].expand(d), [[f[r][c] for f in exact]])
            assert_close(pairs[r, c], [[f[r][c] for f in row] for row in exact_pairs])
            alone = differences(step, rule(name).slope(), steps, torch.float64, [(r, c)])
            assert list(alone) == [(r, c)] and torch.equal(alone[r, c], pairs[r, c])


def test_the_quotient_would_not_do():
    """What the product rule is for: a rounding apart, (f(x) - f(y)) / (x - y) has no correct digit."""
    x, y = 0.3, 0.3 + 1e-15
    step = rule("plain").step(torch.tensor([x, y], dtype=torch.float64))
    f = power(step, 13)[0][0]
    exact = float(exact_difference("plain", x, y, 13)[0][0])
    quotient = ((f[0] - f[1]) / (x - y)).item()
    assert abs(quotient / exact - 1) > 1e-2
    assert (
        abs(
            differences(step, rule("plain").slope(), 13, torch.float64, [(0, 0)])[0, 0][0, 1].item() / exact
            - 1
        )
        < 1e-13
    )


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
    assert torch.isfinite(
        differences(rule(name).step(values), rule(name).slope(), steps, torch.float64, [(0, 0)])[0, 0]
    ).all()
