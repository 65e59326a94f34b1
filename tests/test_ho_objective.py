"""The HO objective: that the fused and the plain way agree, and what they say to wrong arguments."""

import pytest
import torch
from small_problems import leaf, tasks
from tolerance import assert_matches

import pybilevel as pb

SGD = pb.SGD(0.2, momentum=0.5)


def train_and_validation(lead=(), dtype=torch.float64):
    x, y, v, u = tasks(*lead)
    weights = torch.rand(*lead, 6, dtype=torch.float64).requires_grad_()
    inner = pb.SoftmaxRegression(x.detach(), y, weights=weights, num_classes=3)
    return inner, pb.SoftmaxRegression(v.detach(), u, num_classes=3, l2=0.3), weights


@pytest.mark.parametrize("lead", [(), (3,)])
def test_an_outer_problem_is_its_value_at_w_T(lead):
    """Fused, as a callable, and by hand: the same, l2 of the outer problem included."""
    inner, outer, weights = train_and_validation(lead)
    options = {"steps": 6, "optimizer": SGD}
    ways = [
        pb.ho_objective(inner, outer, **options),
        pb.ho_objective(inner, lambda w: outer(w), **options),
        pb.ho_objective(lambda w: inner(w).sum(), outer, inner.initial(), **options),
        outer(pb.unroll(inner, backend="generic", **options)),
    ]
    expected = torch.autograd.grad(ways[-1].sum(), weights, retain_graph=True)[0]
    for way in ways:
        assert way.shape == lead
        assert_matches(way.detach(), ways[-1].detach())
        assert_matches(torch.autograd.grad(way.sum(), weights)[0], expected)


def test_an_outer_callable_may_return_anything_and_hold_leaves():
    inner, outer, weights = train_and_validation()
    scale = leaf()
    value = pb.ho_objective(inner, lambda w: scale * outer(w) ** 2, steps=4, optimizer=SGD)
    grads = torch.autograd.grad(value, [scale, weights])
    assert all(g.any() for g in grads)


def test_truncation_and_state_reach_the_fused_objective():
    inner, outer, weights = train_and_validation()
    exact = torch.autograd.grad(pb.ho_objective(inner, outer, steps=6, optimizer=SGD), weights)[0]
    _, state = pb.unroll(inner, steps=4, optimizer=SGD, return_state=True)
    pieces = pb.ho_objective(inner, outer, steps=2, optimizer=SGD, state=state)
    assert_matches(torch.autograd.grad(pieces, weights)[0], exact)
    cut = [
        pb.ho_objective(inner, outer, steps=6, optimizer=SGD, method=pb.Reverse(truncate=2)),
        pb.ho_objective(inner, outer, steps=2, optimizer=SGD, state=state.detach()),
    ]
    first, second = (torch.autograd.grad(way, weights)[0] for way in cut)
    assert_matches(first, second)
    assert (first - exact).abs().max() > 1e-6


def test_losses_of_two_kinds_are_not_fused_but_work():
    inner, _, weights = train_and_validation()
    outer = pb.LeastSquares(torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64))
    value = pb.ho_objective(inner, outer, steps=3, optimizer=SGD)
    assert torch.autograd.grad(value, weights)[0].any()
    with pytest.raises(pb.BackendError, match="the outer loss is 'squared' but the inner one 'softmax'"):
        pb.ho_objective(inner, outer, steps=3, optimizer=SGD, backend="fused")


def test_hyperparameters_learned_by_gradient_descent():
    """Data hyper-cleaning, in small: the weights of wrong labels go down, those of right ones up."""
    torch.manual_seed(0)
    centers = 2 * torch.randn(3, 6)
    y = torch.arange(60) % 3
    x, v = (centers[y] + 0.5 * torch.randn(60, 6) for _ in range(2))
    wrong = torch.arange(60) < 20
    noisy = torch.where(wrong, (y + 1) % 3, y)
    logit = torch.zeros(60, requires_grad=True)
    outer = torch.optim.Adam([logit], lr=0.2)
    for _ in range(30):
        inner = pb.SoftmaxRegression(x, noisy, weights=logit.sigmoid(), num_classes=3)
        loss = pb.ho_objective(
            inner, pb.SoftmaxRegression(v, y, num_classes=3), steps=20, optimizer=pb.SGD(0.3), backend="fused"
        )
        outer.zero_grad()
        loss.backward()
        outer.step()
    assert logit[wrong].max() < logit[~wrong].median() and logit[wrong].mean() < -0.5


INNER, OUTER, _ = train_and_validation()


def ho(inner=INNER, outer=OUTER, **options):
    return pb.ho_objective(inner, outer, **{"steps": 2, "optimizer": SGD} | options)


HO_ERRORS = {
    "return_state": (
        lambda: ho(return_state=True),
        ValueError,
        "return_state is not for ho_objective: call pb.unroll",
    ),
    "callback": (lambda: ho(callback=3), TypeError, "callback must be a function of pb.InnerStep"),
    "hparams": (
        lambda: ho(hparams=torch.ones(2)),
        ValueError,
        "hparams is given but a fused problem holds its own",
    ),
    "outer": (lambda: ho(outer=3), TypeError, r"outer must be a problem such as .* or a callable, got 3"),
    "outer shape": (
        lambda: ho(outer=pb.SoftmaxRegression(OUTER.x, OUTER.y, num_classes=4)),
        ValueError,
        r"outer needs models of shape \[5, 4\] but inner trains \[5, 3\]: features, classes, bias and tasks",
    ),
    "outer bias": (
        lambda: ho(outer=pb.SoftmaxRegression(OUTER.x, OUTER.y, num_classes=3, bias=False)),
        ValueError,
        r"outer needs models of shape \[4, 3\] but inner trains \[5, 3\]",
    ),
    "outer dtype": (
        lambda: ho(outer=pb.SoftmaxRegression(OUTER.x.float(), OUTER.y, num_classes=3)),
        TypeError,
        "outer.x is torch.float32 but inner.x is torch.float64: cast one",
    ),
    "budget": (
        lambda: ho(memory="1kB", steps=100),
        ValueError,
        r"too small for 100 steps.*Give memory >= \d+",
    ),
    "steps": (lambda: ho(steps=2.5), TypeError, "steps must be an int >= 0, got 2.5"),
    "method": (lambda: ho(method="forward"), TypeError, "method must be a method such as pb.Reverse"),
}


@pytest.mark.parametrize("case", HO_ERRORS)
def test_ho_objective_says_what_is_wrong(case):
    call, error, text = HO_ERRORS[case]
    with pytest.raises(error, match=text):
        call()
