"""The spectral method: w_T and all hypergradients are those of stepping, at a cost that does not grow with T."""

import dataclasses
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import VARIANTS, Built, exact, plain, total
from meter import Meter
from spectral_cases import FORMS, SPECTRAL, case_of, spectral
from tolerance import FINITE_DIFFERENCE_LIMIT, assert_all_match, assert_matches, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

import pybilevel as pb
from benchmarks import spectral as figures
from pybilevel import ops

SIZES = {
    "n > d": {"n": 9, "d": 4, "c": 3},
    "n < d": {"n": 3, "d": 7, "c": 2},
    "n + 1 = d": {"n": 4, "d": 5, "c": 3},
    "one example": {"n": 1, "d": 3, "c": 2},
    "one output": {"n": 6, "d": 4, "c": 1},
    "one feature": {"n": 5, "d": 1, "c": 2},
}


def assert_is_stepping(case):
    values, found = spectral(case)
    assert_all_match(values, exact(case).values)
    assert_all_match(found, exact(case).gradients)


# ------------------------------------------------------------------------------------------------ equal to stepping


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS["sgd"])
def test_every_hypergradient_is_the_oracles(variant, size, bias):
    assert_is_stepping(case_of(variant, bias=bias, **SIZES[size]))


@pytest.mark.parametrize(
    ("variant", "steps"),
    [*product(["plain", "nesterov-decay"], [0, 1, 2, 3, 64, 200]), ("plain", 1000)],  # not yet converged
)
def test_any_number_of_steps(variant, steps):
    assert_is_stepping(case_of(variant, steps=steps, l2="number", amplitude=0.3))


@settings(max_examples=40)
@given(st.data())
def test_any_case(data):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    assert_is_stepping(
        case_of(
            pick(*VARIANTS["sgd"]),
            tasks=pick((), (1,), (3,), (2, 2), (0,)),
            n=pick(1, 2, 5, 8),
            d=pick(1, 2, 7),
            c=pick(1, 3),
            steps=pick(1, 2, 5, 12),
            bias=pick(True, False),
            reduction=pick("mean", "sum"),
            forms=tuple(pick(*FORMS) for _ in range(3)),
            l2=pick("number", "scalar", "task"),
            weights=pick("none", "random", "zeros"),
            w0=pick(True, False),
            strides=pick("contiguous", "transposed", "sliced", "expanded"),
            objective=pick("state", "ho"),
            seed=data.draw(st.integers(0, 99)),
        )
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["plain", "nesterov-decay"])
def test_without_native_operators(variant, size, monkeypatch):
    monkeypatch.setattr(ops, "spectral_native", lambda _: False)
    assert_is_stepping(case_of(variant, bias=True, **SIZES[size]))


@pytest.mark.parametrize("tasks", [(), (2, 3), (0,)])
@pytest.mark.parametrize(("n", "width"), [(0, 9), (1, 1), (5, 8), (6, 9), (400, 3), (800, 21)])
def test_half_of_the_normal_equations(n, width, tasks):
    """Rows in one block and in several, columns in whole and cut packs."""
    x, scale = torch.randn(*tasks, n, width, dtype=torch.float64), torch.rand(*tasks, n, dtype=torch.float64)
    found = ops.spectral_normal(x, scale)
    assert_matches(found.triu(), (x.mT @ (scale.unsqueeze(-1) * x)).triu())


@pytest.mark.parametrize("variant", ["plain", "momentum"])
def test_it_is_reverse(variant):
    """The same law without the oracle: both methods of the package, through both public verbs."""
    case = case_of(variant, objective="ho", steps=20)
    leaves = case.inputs()
    built = Built(case, leaves)
    options = {"steps": case.steps, "optimizer": built.solver(), "wrt": list(leaves.values())}
    found, expected = (
        pb.hypergradient(built.problem, built.outer, built.w0, method=m, **options)
        for m in (pb.Spectral(), pb.Reverse())
    )
    assert_matches(found.value, expected.value)
    assert_all_match(found.grads, expected.grads)


# ------------------------------------------------------------------------------------------------ eigenvalues


def repeated(gap, n=6, d=4):
    """Features whose H has the eigenvalues 1, 1 + gap, 1 + 2 gap, ...: orthogonal columns."""
    q, _ = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64))
    return q * (1 + gap * torch.arange(d)).sqrt()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-13, 1e-10, 1e-7, 1e-4])
def test_equal_and_nearly_equal_eigenvalues(gap, bias):
    x = repeated(gap).requires_grad_()
    y, weights = (
        torch.randn(6, 2, dtype=torch.float64),
        torch.ones(6, dtype=torch.float64, requires_grad=True),
    )
    l2 = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    inner = pb.LeastSquares(x, y, weights=weights, l2=l2, bias=bias, reduction="sum")
    bar = torch.randn(inner.shape, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(
            (bar * pb.unroll(inner, steps=30, optimizer=pb.SGD(0.2, 0.5), method=method)).sum(),
            (x, weights, l2),
        )
        for method in (pb.Spectral(), pb.Reverse())
    )
    assert_all_match(found, expected)


@pytest.mark.parametrize("n", [2, 5])
def test_finite_differences_where_eigenvalues_are_equal(n):
    """The derivative at a point where eigenvectors have none: zero, repeated and dependent rows."""
    x = torch.zeros(n, 3, dtype=torch.float64)
    x[:2, 0] = 1.0
    y = torch.randn(n, 2, dtype=torch.float64)
    w0 = torch.randn(4, 2, dtype=torch.float64)
    tensors = [x, y, w0, *(torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.6, 0.1, 0.2))]

    def run(x, y, w0, lr, momentum, decay, l2):
        inner = pb.LeastSquares(x, y, l2=l2)
        rule = pb.SGD(lr, momentum, nesterov=True, weight_decay=decay)
        return pb.unroll(inner, w0, steps=9, optimizer=rule, method=pb.Spectral())

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in tensors], atol=FINITE_DIFFERENCE_LIMIT)


# ------------------------------------------------------------------------------------------------ cost


class Count(TorchDispatchMode):
    """How many torch operations run within it."""

    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["plain", "nesterov"])
def test_operations_grow_with_log_steps_at_most(variant):
    def operations(steps):
        with Count() as count:
            spectral(case_of(variant, steps=steps, l2="number", amplitude=0.1))
        return count.ops

    base, more = operations(2**12), operations(2**13)
    per_digit = more - base
    assert 0 < per_digit < base / 10
    assert operations(2**24) - base == 12 * per_digit
    assert operations(2**24 - 1) <= base + 40 * per_digit


@pytest.mark.parametrize("n", [40, 12])
@pytest.mark.parametrize("variant", ["plain", "momentum"])
def test_explain_bounds_the_peak_and_memory_changes_nothing(variant, n):
    case = case_of(variant, n=n, d=24, c=6, tasks=(), forms=("scalar",), w0=False, dtype=torch.float32)
    peaks, results = {}, {}
    for steps, memory in product((4096, 65536), ("auto", 1, pb.Revolve(2))):
        leaves = case.inputs()
        built = Built(dataclasses.replace(case, l2="number"), leaves)
        options = {"steps": steps, "optimizer": built.solver(), "method": pb.Spectral(), "memory": memory}
        explained = pb.explain(pb.unroll, built.problem, **options)
        with Meter() as meter:
            w = pb.unroll(built.problem, **options)
            w.sum().backward()
        peaks[steps] = meter.peak
        results.setdefault(steps, []).append((w, leaves["x"].grad))
        assert 0.5 * explained.peak_memory <= meter.peak <= explained.peak_memory
        assert (explained.coordinates, explained.slots, explained.recomputation) == ("spectral", 0, 1.0)
    # the settings' graph has some numbers an eigenvalue more, log2 T times
    assert peaks[65536] <= 1.2 * peaks[4096]
    for (w, g), *others in results.values():
        assert all(torch.equal(w, v) and torch.equal(g, h) for v, h in others)


# ------------------------------------------------------------------------------------------------ rounding and dtypes


@pytest.mark.parametrize("variant", ["plain", "momentum"])
@pytest.mark.parametrize("steps", [16, 128])
def test_float32_rounds_as_stepping_does(steps, variant):
    case = case_of(variant, n=30, d=20, c=3, steps=steps, tasks=(), dtype=torch.float32, objective="ho")
    values, found = spectral(case)
    stepped = plain(case)
    for name, gradient in found.items():
        assert_matches(gradient, exact(case).gradients[name], name, stepped.gradients[name])
    assert_matches(values["loss"], exact(case).values["loss"], "loss", stepped.values["loss"])


def test_the_figures_of_the_page_are_made_by_a_command_that_works():
    table = figures.rounding(n=12, d=5, c=2, steps=(3, 8))
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[str(t), name] for t in (3, 8) for name in figures.NAMES]
    assert all(0 <= float(error) < 1e-5 for row in rows for error in row[2:])
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    assert_matches(figures.by_eigenvalues(x, y, 16), figures.by_squaring(x, y, 16))
    assert "| 4 |" in figures.times(n=7, d=3, c=2, steps=(4,), repeats=1)


def test_half_precision_is_computed_in_float32_and_autocast_is_not_looked_at():
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    options = {"steps": 7, "optimizer": pb.SGD(0.1), "method": pb.Spectral()}
    half = pb.LeastSquares(x.bfloat16(), y.bfloat16())
    assert pb.unroll(half, **options).dtype == torch.float32
    expected = pb.unroll(pb.LeastSquares(x, y), **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pb.unroll(pb.LeastSquares(x, y), **options), expected)


def test_on_every_device(device):
    case = case_of("nesterov-decay", dtype=torch.float32)
    leaves = case.inputs()
    moved = {k: v.detach().to(device).requires_grad_() for k, v in leaves.items()}
    values = Built(case, moved).fused(**SPECTRAL)
    found = torch.autograd.grad(total({k: v.cpu() for k, v in values.items()}), list(moved.values()))
    for (name, expected), gradient in zip(exact(case).gradients.items(), found, strict=True):
        assert relative_error(gradient, expected) < 1e-5, name
