"""Powers of one step and their divided differences, against the same numbers in exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch
from tolerance import assert_matches

from pybilevel import ops
from pybilevel.engine.spectral_powers import Rule, differences, edges, functions, power, weighted

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


def pairs_of(some, values, steps):
    """All divided differences at all pairs, by `weighted`, a weight of one on one entry after the other."""
    half = torch.full((*values.shape, values.shape[-1]), 0.5, dtype=torch.float64)
    return {place: weighted(some, values, steps, {place: half}) for place in some.places}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 13, 24])
@pytest.mark.parametrize("name", RULES)
def test_powers_and_divided_differences_are_exact(name, steps, native, monkeypatch):
    monkeypatch.setattr(ops, "spectral_native", lambda _: native)
    some, values = rule(name), torch.tensor(EIGENVALUES, dtype=torch.float64)
    powers, pairs, last = (
        functions(some, values, steps),
        pairs_of(some, values, steps),
        edges(some, values, steps),
    )
    exact = [exact_power(name, Fraction(x), steps) for x in EIGENVALUES]
    exact_pairs = [[exact_difference(name, x, y, steps) for y in EIGENVALUES] for x in EIGENVALUES]
    for r, c in pairs:
        of_pairs = [[f[r][c] for f in row] for row in exact_pairs]
        assert_close(powers[r][c], [[f[r][c] for f in exact]])
        assert_close(pairs[r, c], of_pairs)
        assert_close(last[r, c], [of_pairs[-1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 4, 16, 17, 50])
@pytest.mark.parametrize("name", ["plain", "nesterov"])
def test_weights_of_several_entries_and_tasks(name, width, dtype):
    """The native operator and the sums of passes, on tiles that are whole, cut, and on the diagonal."""
    values = torch.rand(2, 3, width, dtype=torch.float64)
    lr, momentum, decay, nesterov = RULES[name]
    lrs = lr * torch.rand(2, 3, 1, dtype=torch.float64)
    momenta = None if momentum is None else column(momentum).expand(2, 3, 1)
    some = Rule(lrs, momenta, column(decay).expand(2, 3, 1), nesterov)
    products = {place: torch.randn(2, 3, width, width, dtype=dtype) for place in some.places[1:]}
    found = weighted(some, values, 27, products)
    pairs = differences(some, values, values, 27, torch.float64)
    expected = sum(pairs[place] * products[place].double() for place in products)
    assert found.dtype == dtype and torch.equal(found, found.mT)
    assert_matches(found, expected + expected.mT)
    for place, last in edges(some, values, 27).items():
        assert_matches(last, pairs[place][..., -1])
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    again = weighted(some, values, 27, products)
    torch.set_num_threads(threads)
    assert torch.equal(found, again)


def test_errors_name_the_argument():
    values, one = torch.zeros(3, dtype=torch.float64), column(0.1)
    for arguments, error, text in (
        ((values, one, None, one, False, 0), ValueError, "steps must be at least 1"),
        ((values.float(), one, None, one, False, 1), TypeError, "values must be float64"),
        ((values, values, None, one, False, 1), ValueError, "lr must have 1 numbers"),
    ):
        with pytest.raises(error, match=text):
            ops.spectral_power(*arguments)
    with pytest.raises(ValueError, match="products must be 2"):
        ops.spectral_pairs(values, one, None, one, False, 1, [None])
    with pytest.raises(ValueError, match="no product"):
        ops.spectral_pairs(values, one, None, one, False, 1, [None, None])
    with pytest.raises(ValueError, match=r"products must be \[3, 3\]"):
        ops.spectral_pairs(values, one, None, one, False, 1, [None, torch.zeros(2, 2)])


def test_the_quotient_would_not_do():
    """What the product rule is for: a rounding apart, (f(x) - f(y)) / (x - y) has no correct digit."""
    x, y = 0.3, 0.3 + 1e-15
    step = rule("plain").step(torch.tensor([x, y], dtype=torch.float64))
    f = power(step, 13)[0][0]
    exact = float(exact_difference("plain", x, y, 13)[0][0])
    quotient = ((f[0] - f[1]) / (x - y)).item()
    assert abs(quotient / exact - 1) > 1e-2
    found = pairs_of(rule("plain"), torch.tensor([x, y], dtype=torch.float64), 13)[0, 0][0, 1].item()
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
    pairs = pairs_of(rule(name), values, steps)
    assert all(p.isfinite().all() for p in pairs.values())
