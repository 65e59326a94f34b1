"""The solvers of linear systems: tasks apart, warm starts, singular systems."""

import pytest
import torch
from tolerance import assert_matches

from pybilevel.engine.solvers import SOLVERS, System, solve

H = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
B = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "fixed_point"])
@pytest.mark.parametrize("size", [1, 6])
def test_solvers_take_tasks_apart(name, size):
    """Systems of very different scales, one of them with b = 0, over two tensors."""
    q = torch.randn(4, 2 * size, 2 * size).double()
    scales = torch.tensor([1.0, 1e-3, 1e4, 1.0]).double()
    matrix = (q @ q.mT + torch.eye(2 * size).double()) * scales[:, None, None]
    b = torch.randn(4, 2 * size).double()
    b[3] = 0
    calls = []

    def product(v):
        calls.append(1)
        whole = (matrix @ torch.cat([x.reshape(4, -1) for x in v], 1)[..., None])[..., 0]
        return [whole[:, :size], whole[:, size:].reshape(4, size, 1)]

    system = System(product, [b[:, :size], b[:, size:].reshape(4, size, 1)], 1, 5000, 1e-13)
    found = solve(name, system)
    exact = torch.linalg.solve(matrix, b)
    for i in range(4):
        assert_matches(torch.cat([x[i].reshape(-1) for x in found.q]), exact[i], f"task {i}")
    assert found.stopped == "converged" and found.residual.shape == (4,) and found.residual[3] == 0
    if name != "neumann":
        assert found.iterations <= 4 * size and len(calls) <= 2 * found.iterations + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["cg", "normal_cg", "neumann"])
def test_a_singular_system(name, dtype):
    """In the range it is solved; out of it the result stays bounded, and its residual is what cannot be removed."""
    basis = torch.linalg.qr(torch.randn(6, 6).double())[0]
    values = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.0, 0.0]).double()
    matrix = (basis * values @ basis.T).to(dtype)
    for part, expected in ((0.0, 0.0), (1.0, (2 / 6) ** 0.5)):
        b = (basis @ torch.tensor([1.0, 1.0, 1.0, 1.0, part, part]).double()).to(dtype)
        system = System(lambda v: [matrix @ v[0]], [b], 0, 200, 1e-5)
        found = solve(name, system)
        exact = (basis @ torch.tensor([1 / 3, 0.5, 1.0, 2.0, 0, 0]).double()).to(dtype)
        # cg does not minimise the residual, but gives nothing worse than its start
        assert found.residual <= (2e-5 if part == 0 else 1.0 if name == "cg" else 1.01 * expected)
        assert (found.stopped == "converged") == (part == 0)
        if part == 0:
            assert torch.allclose(found.q[0], exact, atol=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_good_start_needs_no_iteration(name):
    system = System(lambda v: [H @ v[0] / 6], [B], 0, 500, 1e-10)
    exact = [torch.linalg.solve(H / 6, B)]
    found = solve(name, system, exact)
    assert found.iterations == 0 and found.stopped == "converged" and torch.equal(found.q[0], exact[0])


def test_nan_is_not_convergence():
    found = solve("cg", System(lambda v: [v[0] * float("nan")], [B], 0, 5, 1e-6))
    assert found.stopped != "converged" and not found.residual <= 1
