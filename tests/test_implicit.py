"""Implicit differentiation beyond its law: reports, warm starts, curvature, damping, and what lands in the graph."""

import io
import warnings

import pytest
import torch
from generic_laws import leaf
from tolerance import assert_matches, relative_error

import pybilevel as pb
from pybilevel.engine.solvers import SOLVERS

H = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
B = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)


def quadratic(matrix=H):
    """w^T H w / 2 - h^T w, whose solution is H^-1 h."""
    return lambda w, h: 0.5 * w.dot(matrix @ w) - h.dot(w)


def at_solution(h, matrix=H, inner=None, **options):
    w0 = torch.linalg.solve(matrix, h.detach())
    return pb.unroll(
        inner or quadratic(matrix),
        w0,
        h,
        steps=0,
        optimizer=pb.SGD(0.1),
        method=pb.Implicit(**options),
        return_state=True,
    )


# ------------------------------------------------------------------------------------------------ reports


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_backward_fills_the_report(solver):
    h = B.clone().requires_grad_()
    w, state = at_solution(h, solver=solver, max_iter=2000, tol=1e-10)
    assert state.info == {}
    w.sum().backward()
    info = state.info
    assert info["solver"] == solver and info["converged"] is True and info["stopped"] == "converged"
    assert info["residual"] <= 2e-10 and 0 < info["iterations"] <= 2000
    assert info["stationarity"] < 1e-12
    assert_matches(h.grad, torch.linalg.solve(H, torch.ones(3).double()))


def test_what_is_not_solved_is_reported_without_a_warning():
    h = B.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w, state = at_solution(h, solver="cg", max_iter=1, tol=1e-10)
        w.sum().backward()
    assert state.info["converged"] is False and state.info["stopped"] == "max_iter"
    assert 1e-3 < state.info["residual"] < 1 and h.grad.isfinite().all()


def test_negative_curvature_is_reported_and_normal_cg_goes_through_it():
    saddle = torch.diag(torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64))
    h = B.clone().requires_grad_()
    w, state = at_solution(h, saddle, solver="cg")
    w[1].backward()
    assert state.info["converged"] is False and state.info["stopped"] == "curvature"
    h.grad = None
    w, state = at_solution(h, saddle, solver="normal_cg", tol=1e-12)
    w.sum().backward()
    assert state.info["converged"] is True
    assert_matches(h.grad, torch.linalg.solve(saddle, torch.ones(3).double()))


def test_an_iterate_that_is_no_solution_shows_in_the_stationarity():
    h = B.clone().requires_grad_()
    w, state = pb.unroll(
        quadratic(),
        torch.zeros(3).double(),
        h,
        steps=1,
        optimizer=pb.SGD(0.1),
        method=pb.Implicit(),
        return_state=True,
    )
    w.sum().backward()
    assert torch.allclose(state.info["stationarity"], (H @ w - h).norm())


def test_each_task_has_its_residual():
    x = leaf(3, 6, 2)
    inner = pb.SoftmaxRegression(x, torch.arange(6).expand(3, 6) % 3, l2=0.2)
    options = {"steps": 400, "optimizer": pb.SGD(0.5), "return_state": True}
    w, state = pb.unroll(inner, method=pb.Implicit(tol=1e-10), **options)
    w.sin().sum().backward()
    assert state.info["residual"].shape == state.info["stationarity"].shape == (3,)
    assert state.info["solution"][0].shape == w.shape


# ------------------------------------------------------------------------------------------------ the system


def test_damping_is_added_to_the_diagonal():
    h = B.clone().requires_grad_()
    w, _ = at_solution(h, solver="cg", damping=0.5, tol=1e-12)
    (found,) = torch.autograd.grad(w.sum(), h)
    assert_matches(found, torch.linalg.solve(H + 0.5 * torch.eye(3), torch.ones(3).double()))
    w, _ = at_solution(h, solver="fixed_point", damping=0.5, tol=1e-12, max_iter=1000)
    (found,) = torch.autograd.grad(w.sum(), h)  # of I - J^T = 0.1 H, and dPhi / dh = 0.1
    assert_matches(found, 0.1 * torch.linalg.solve(0.1 * H + 0.5 * torch.eye(3), torch.ones(3).double()))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fixed_points_of_a_step_with_weight_decay(momentum):
    """w* = (H + d)^-1 h, also as a function of the decay d."""
    h, decay = B.clone().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w = pb.unroll(
        quadratic(),
        torch.zeros(3).double(),
        h,
        steps=500,
        optimizer=pb.SGD(0.1, momentum, weight_decay=decay),
        method=pb.Implicit("fixed_point", max_iter=1000, tol=1e-12),
    )
    exact = torch.linalg.solve(H + decay * torch.eye(3).double(), h)
    assert_matches(w, exact)
    found = torch.autograd.grad(w.sin().sum(), [h, decay])
    for a, b in zip(found, torch.autograd.grad(exact.sin().sum(), [h, decay]), strict=True):
        assert_matches(a, b)


def test_all_products_share_one_graph():
    calls = []

    def inner(w, h):
        calls.append(1)
        return quadratic()(w, h)

    counts = {}
    for solver in SOLVERS:
        h = B.clone().requires_grad_()
        w, state = at_solution(h, inner=inner, solver=solver, max_iter=500, tol=1e-10)
        calls.clear()
        w.sum().backward()
        counts[solver] = len(calls)
        assert state.info["iterations"] >= 3
    assert set(counts.values()) == {3}  # the check of the replay, the products, the mixed derivative


# ------------------------------------------------------------------------------------------------ going on


def test_the_next_call_starts_from_the_last_solution():
    h = B.clone().requires_grad_()
    options = {"optimizer": pb.SGD(0.1), "return_state": True, "method": pb.Implicit("neumann", 500, 1e-8)}
    _, state = pb.unroll(quadratic(), torch.zeros(3).double(), h, steps=200, **options)
    detached = state.detach()  # before the backward: the report is shared
    state.w.sum().backward()
    first = state.info["iterations"]
    saved = io.BytesIO()
    torch.save(state.state_dict(), saved)
    saved.seek(0)
    _, loaded = pb.unroll(quadratic(), torch.zeros(3).double(), h, steps=1, **options)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for before in (detached, loaded):
        w, after = pb.unroll(quadratic(), None, h, steps=1, state=before, **options)
        h.grad = None
        w.sum().backward()
        assert after.info["iterations"] == 0 < first and after.info["converged"]
        assert torch.allclose(h.grad, torch.linalg.solve(H, torch.ones(3).double()), rtol=1e-6)
    other = pb.Implicit("cg")
    w, after = pb.unroll(quadratic(), None, h, steps=1, state=detached, **(options | {"method": other}))
    w.sum().backward()
    assert after.info["iterations"] == 3  # another solver starts afresh


def test_w0_may_change_before_the_backward_and_theta_may_not():
    w0, h = torch.zeros(3).double(), B.clone().requires_grad_()
    options = {"steps": 100, "optimizer": pb.SGD(0.1), "method": pb.Implicit()}
    w = pb.unroll(quadratic(), w0, h, **options)
    with torch.no_grad():
        w0.copy_(w)
    with pytest.raises(RuntimeError, match="another value in the backward"):
        w.sum().backward()
    w = pb.unroll(quadratic(), w0, h, **options)
    w.sum().backward()
    w = pb.unroll(quadratic(), w0, h, **options)
    with torch.no_grad():
        h += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_the_node():
    h, w0 = B.clone().requires_grad_(), leaf(3)
    options = {"steps": 100, "optimizer": pb.SGD(0.1, 0.5), "method": pb.Implicit(tol=1e-12)}
    w, state = pb.unroll(quadratic(), w0, h, return_state=True, **options)
    assert state.step == 100 and not state.buffers[0][0].requires_grad and state.w is w
    first, again = (torch.autograd.grad(w.sum(), [w0, h], retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], torch.zeros(3)) and torch.allclose(first[1], again[1])
    (gradient,) = torch.autograd.grad(w.sin().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated twice"):
        gradient.sum().backward()
    with torch.no_grad():
        assert not pb.unroll(quadratic(), w0, h, **options).requires_grad
    assert not pb.unroll(quadratic(), w0.detach(), h.detach(), **options).requires_grad
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use no_grad"):
        pb.unroll(quadratic(), w0, h, **options)


def test_callbacks_see_the_forward_half_and_may_end_it():
    h, seen = B.clone().requires_grad_(), []

    def callback(step):
        seen.append(step.step)
        return len(seen) == 150

    w, state = pb.unroll(
        quadratic(),
        torch.zeros(3).double(),
        h,
        steps=1000,
        optimizer=pb.SGD(torch.linspace(0.1, 0.2, 1000)),
        method=pb.Implicit("fixed_point", max_iter=1000, tol=1e-10),
        callback=callback,
        return_state=True,
    )
    w.sum().backward()
    assert state.step == len(seen) == 150
    assert torch.allclose(h.grad, torch.linalg.solve(H, torch.ones(3).double()), rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tasks_of_a_callable(solver):
    x, y, l2 = leaf(4, 6, 3), leaf(4, 6), leaf(low=0.3)

    def inner(w, h):
        return 0.5 * (h[0] @ w - h[1]).square().mean() + 0.5 * l2 * w.square().sum()

    w, state = pb.unroll(
        inner,
        torch.zeros(3).double(),
        (x, y),
        steps=1500,
        in_dims=(None, 0),
        optimizer=pb.SGD(0.3),
        method=pb.Implicit(solver, max_iter=2000, tol=1e-12),
        return_state=True,
    )
    matrix = x.mT @ x / 6 + l2 * torch.eye(3).double()
    exact = torch.linalg.solve(matrix, (x.mT @ y.unsqueeze(-1) / 6)).squeeze(-1)
    assert_matches(w, exact)
    found = torch.autograd.grad(w.sin().sum(), [x, y, l2])
    for a, b in zip(found, torch.autograd.grad(exact.sin().sum(), [x, y, l2]), strict=True):
        assert_matches(a, b)
    assert state.info["converged"] and state.info["residual"].shape == (
        () if solver == "fixed_point" else (4,)
    )


def test_a_perceptron_at_a_minimum():
    """Tasks of several leaves; the reference is the unroll of a converged training."""
    x, l2 = leaf(2, 7, 2), torch.tensor(0.2).double().requires_grad_()
    problem = pb.MLP(x, x.detach().sin(), sizes=(2, 3, 2), activation="tanh", l2=l2)
    w0 = [
        (w.double(), b.double())
        for w, b in pb.MLP.init((2, 3, 2), generator=torch.Generator().manual_seed(1))
    ]
    options = {"steps": 3000, "optimizer": pb.SGD(0.3, 0.5), "return_state": True}
    found = []
    for method in (pb.Reverse(), pb.Implicit("cg", tol=1e-12)):
        w, state = pb.unroll(problem, w0, method=method, **options)
        found.append(torch.autograd.grad(sum(a.sin().sum() + b.sum() for a, b in w), [x, l2]))
    assert state.info["converged"] and state.info["residual"].shape == (2,)
    for a, b in zip(*found, strict=True):
        assert relative_error(b, a) < 1e-7
