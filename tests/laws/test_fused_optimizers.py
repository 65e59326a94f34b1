"""The fused inner optimizers beyond the laws of every row: torch.optim's values, zeros, states, counts."""

import pytest
import torch
from linear_optimizers import LINEAR, RICHEST, VARIANTS
from optimizer_cases import build, optimizers, theirs
from tolerance import assert_all_match, assert_matches, relative_error

import pybilevel as pb

NONLINEAR = [name for name in VARIANTS if name not in LINEAR]
STEPS = 25
LABELS = torch.arange(18).reshape(2, 9) % 3
SOME = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def problem(dtype=torch.float64, **more):
    x = torch.randn(2, 9, 5, dtype=dtype)
    return pb.SoftmaxRegression(x, LABELS, num_classes=3, **more)


def start(dtype=torch.float64):
    """No zeros, where the classes tie: the gradient of a bias would be mere rounding, made large by 1 / eps."""
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def default(name, **settings):
    """An optimizer with the settings of its constructor but for the step size."""
    return optimizers()[name](**{"lr": 0.1} | settings)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", NONLINEAR)
def test_values_are_those_of_torch(name, dtype, limit):
    """With its own defaults, eps = 1e-8 or 1e-10 among them. float32: betas are rounded to it, 1 - 0.999 to 1e-5."""
    inner = problem(dtype, l2=0.1)
    w = start(dtype).requires_grad_()
    reference = theirs(name, w, lr=0.1)
    for _ in range(STEPS):
        reference.zero_grad()
        inner(w).sum().backward()
        reference.step()
    found = pb.unroll(inner, start(dtype), steps=STEPS, optimizer=default(name), backend="fused")
    assert relative_error(found, w.detach()) <= limit


@pytest.mark.parametrize("variant", ["default", "richest"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_a_parameter_without_gradient_has_finite_derivatives(name, variant):
    """A feature that is 0 in all rows leaves the sums of squares at 0: what the generic engine says of it."""
    numbers, flags = VARIANTS[name][RICHEST[name]]
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    x[..., 2] = 0.0
    leaves = [x.requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)]

    def gradients(backend):
        inner = pb.SoftmaxRegression(leaves[0], LABELS, num_classes=3)
        solver = default(name, lr=leaves[1])
        if variant == "richest":
            solver = build(optimizers()[name], **numbers | {"lr": leaves[1]}, **flags)
        w = pb.unroll(inner, start(), steps=5, optimizer=solver, backend=backend)
        return torch.autograd.grad((w * SOME).sin().sum(), leaves)

    found = gradients("fused")
    assert all(g.isfinite().all() for g in found)
    assert_all_match(found, gradients("generic"))


@pytest.mark.parametrize("engines", [("fused", "generic"), ("generic", "fused")])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_state_passes_from_one_engine_to_the_other(name, engines):
    """Buffers, count of steps included, are the same things in both."""
    numbers, flags = VARIANTS[name][RICHEST[name]]
    lr = torch.tensor(numbers["lr"], dtype=torch.float64, requires_grad=True)
    solver = build(optimizers()[name], **numbers | {"lr": lr}, **flags)
    inner = problem(l2=0.1)

    def parts(first, second):
        _, state = pb.unroll(inner, steps=4, optimizer=solver, return_state=True, backend=first)
        return pb.unroll(inner, steps=3, optimizer=solver, state=state, return_state=True, backend=second)

    w, state = parts(*engines)
    whole, last = pb.unroll(inner, steps=7, optimizer=solver, return_state=True, backend="generic")
    assert state.step == last.step == 7
    found, expected = [w, *state.buffers[0]], [whole, *last.buffers[0]]
    assert [(b.shape, b.dtype) for b in found] == [(b.shape, b.dtype) for b in expected]
    assert_all_match([b.detach() for b in found], [b.detach() for b in expected])
    moving = [(a, b) for a, b in zip(found, expected, strict=True) if b.ndim]
    for a, b in moving:
        bars = [torch.autograd.grad((one * SOME).sin().sum(), lr, retain_graph=True)[0] for one in (a, b)]
        assert_matches(*bars)


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5, dtype=torch.float64, requires_grad=True)])
def test_adagrad_starts_where_it_is_told(value):
    inner = problem(l2=0.1)
    solver = pb.Adagrad(0.3, initial_accumulator_value=value)
    w, expected = (pb.unroll(inner, steps=4, optimizer=solver, backend=b) for b in ("fused", "generic"))
    assert_matches(w.detach(), expected.detach())
    if isinstance(value, torch.Tensor):
        found, exact = (torch.autograd.grad(one.sin().sum(), value) for one in (w, expected))
        assert_all_match(found, exact)


def test_a_count_that_the_state_does_not_share_is_a_reason():
    inner, solver = problem(), pb.Adam(0.1)
    _, state = pb.unroll(inner, steps=4, optimizer=solver, return_state=True)
    state.step = 9
    with pytest.raises(pb.BackendError, match=r"counts 4 steps, but state\.step is 9"):
        pb.unroll(inner, steps=2, optimizer=solver, state=state, backend="fused")


def test_a_class_of_ones_own_does_not_get_the_kernel_of_its_name():
    class Mine(pb.Adam):
        def step(self, w, g, buffers, settings):
            return w, buffers

    inner = problem()
    assert not pb.unroll(inner, steps=3, optimizer=Mine(0.1)).any()
    with pytest.raises(pb.BackendError, match="the optimizer 'adam' has no native kernel"):
        pb.unroll(inner, steps=3, optimizer=Mine(0.1), backend="fused")


def test_explain_says_why_only_primal_coordinates():
    told = pb.explain(pb.unroll, problem(), steps=3, optimizer=pb.Adam(0.1))
    assert told.coordinates == "primal"
    assert "dual coordinates need a step that is linear, which that of adam is not" in told.regime
