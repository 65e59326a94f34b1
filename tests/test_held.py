"""The meter of what operations leave behind counts the storages that live, once each, and only those made within it."""

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Square
from meter import Meter

from pybilevel.engine.workspace import held

X, Y = torch.randn(32, 64), torch.randint(10, (32,))
W, B = torch.randn(128, 64, requires_grad=True), torch.randn(128, requires_grad=True)
H = torch.randn(32, 10, requires_grad=True)


def gradient(loss, w):
    return torch.autograd.grad(loss, w, create_graph=True)


@pytest.mark.parametrize(
    ("run", "expected"),
    {
        "one": (lambda: X * 2, 32 * 64 * 4),
        "made of nothing": (lambda: torch.zeros(7, dtype=torch.float64), 56),
        "a view": (lambda: X.T[3:], 0),
        "in place": (lambda: torch.empty(10).fill_(2).mul_(3), 40),
        "gone": (lambda: (X * 2).sum(), 4),
        "several": (lambda: (X * 2).split(8), 32 * 64 * 4),
        "held by a graph": (lambda: F.linear(X, W, B).tanh().sum(), 32 * 128 * 4 + 4),
        "by the graph of a gradient": (lambda: gradient(Square.apply(B).sum(), B), 128 * 4 + 4),
        "a list": (lambda: torch._foreach_add([X, Y], 1), 32 * 64 * 4 + 32 * 8),
    }.values(),
)
def test_it_counts_what_lives(run, expected):
    with held() as live:
        kept = run()
    assert live() == expected
    del kept
    assert live() == 0


@pytest.mark.parametrize("outer", [False, True])
def test_it_counts_what_a_dispatch_mode_counts(outer):
    """A step of training with its graph; also within that mode."""

    def step():
        w = [x.detach().requires_grad_() for x in (W, B)]
        loss = F.cross_entropy(F.linear(X, *w).tanh()[:, :10], Y)
        return w, [x - 0.1 * g for x, g in zip(w, gradient(loss, w), strict=True)]

    step()
    meter = Meter()
    with meter:
        inner = step() if not outer else None
        if outer:
            with held() as live:
                inner = step()
    if not outer:
        with held() as live:
            other = step()
    assert abs(live() - meter.live) <= 16  # single numbers
    del inner
    if not outer:
        del other
    assert live() == 0


def test_what_was_made_before_counts_where_asked_and_until_it_goes():
    before = torch.zeros(100)
    with held([before]) as live:
        after = before + 1
        assert live() == 800
    del before
    assert live() == 400
    del after


def test_one_within_another_is_counted_by_both():
    with held() as outer:
        a = X + 1
        with held() as inner:
            b = X + 1
        c = X + 1
    assert outer() == 3 * inner() == 3 * X.nbytes
    with held() as again:
        d = X + 1
    assert again() == X.nbytes and outer() == 3 * X.nbytes
    del a, b, c, d


def test_it_ends_where_the_code_raises():
    with pytest.raises(RuntimeError), held() as live:
        X @ X
    kept = X + 1
    assert live() == 0
    del kept
