"""Mini-batches of fused problems are row indices: each step's loss is that of its rows."""

from functools import partial

import pytest
import torch
from generic_laws import STEPS, assert_law, generic, leaf
from tolerance import assert_matches

from pybilevel import explain, ho_objective, ml_objective
from pybilevel.engine import oracle
from pybilevel.engine.unroll import unroll
from pybilevel.errors import BackendError
from pybilevel.methods import Spectral
from pybilevel.optimizers import SGD
from pybilevel.problems import LeastSquares, SoftmaxRegression
from pybilevel.schedules import Revolve, StoreAll


def rows_of(problem, x, y, weights, l2):
    """A plain loss on the rows of a batch, written with the problem on gathered tensors."""

    def value(w, rows):
        def take(z):
            return torch.stack([a[i] for a, i in zip(z, rows, strict=True)])

        if x.ndim == 2:
            return problem(x[rows], y[rows], weights=weights[rows], l2=l2)(w)
        return problem(take(x), take(y), weights=take(weights), l2=l2)(w)

    return value


@pytest.mark.parametrize("tasks", [(), (3,)], ids=str)
@pytest.mark.parametrize("kind", [SoftmaxRegression, LeastSquares])
@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2)], ids=str)
def test_law_on_rows_of_fused_problems(tasks, kind, memory):
    inputs = {
        "x": leaf(*tasks, 6, 4),
        "y": leaf(*tasks, 6, 3, low=0.1),
        "weights": leaf(*tasks, 6, low=0.1),
        "l2": leaf(low=0.1),
    }
    problem = kind(**inputs)
    rows = torch.randint(6, (STEPS, *tasks, 2))
    w0, lr = leaf(*problem.shape), leaf(low=0.1)
    everything = {"w0": w0, "lr": lr, **inputs}
    plain = rows_of(kind, **inputs)
    assert_law(problem, w0, inputs=everything, batches=rows, plain=plain, memory=memory, lr=lr)


def test_rows_of_integer_classes_from_a_function_or_a_list():
    x, y = leaf(6, 4), torch.arange(6) % 3
    problem, rows = SoftmaxRegression(x, y), torch.randint(6, (STEPS, 2))
    exact = oracle.unroll(
        lambda w, i: SoftmaxRegression(x[i], y[i], num_classes=3)(w),
        problem.initial(),
        steps=STEPS,
        lr=0.3,
        batches=rows,
    )[0]
    for batches in (rows, list(rows), lambda t: rows[t]):
        w = generic(problem, None, batches=batches, lr=0.3)
        assert_matches(w, exact)
        assert_matches(
            torch.autograd.grad(w.sin().sum(), x)[0],
            torch.autograd.grad(exact.sin().sum(), x, retain_graph=True)[0],
        )


def test_all_rows_in_order_are_the_problem_itself():
    problem = SoftmaxRegression(torch.randn(2, 6, 4).double(), torch.arange(12).reshape(2, 6) % 3)
    rows = torch.arange(6).expand(STEPS, 2, 6)
    assert torch.equal(generic(problem, None, batches=rows, lr=0.3), generic(problem, None, lr=0.3))


def test_rows_are_not_fused_and_explain_says_so():
    problem, rows = SoftmaxRegression(torch.randn(6, 4), torch.arange(6) % 3), torch.zeros(3, 2).long()
    explained = explain(unroll, problem, steps=3, optimizer=SGD(0.1), batches=rows)
    assert explained.backend == "generic" and any(
        "batches are given" in reason for reason in explained.reasons
    )
    with pytest.raises(BackendError, match="batches are given"):
        unroll(problem, steps=3, optimizer=SGD(0.1), batches=rows, backend="fused")


def test_rows_that_a_function_draws_are_replayed():
    x, y = leaf(6, 4), torch.arange(6) % 3
    problem, drawn = SoftmaxRegression(x, y), []

    def draw(t):
        drawn.append(torch.randint(6, (2,)))
        return drawn[-1]

    w = generic(problem, None, batches=draw, lr=0.3, memory=Revolve(2))
    rows = drawn[1 : STEPS + 1]  # the first call looks for what draws
    again = generic(problem, None, batches=rows, lr=0.3)
    assert torch.equal(w, again)
    found, expected = (torch.autograd.grad(z.sin().sum(), x)[0] for z in (w, again))
    assert torch.equal(found, expected)


def test_a_function_that_gives_other_rows_the_second_time_is_an_error():
    rows = iter(torch.arange(6).repeat(10).reshape(-1, 2) % 6)
    w = generic(
        SoftmaxRegression(leaf(6, 4), torch.arange(6) % 3), None, batches=lambda t: next(rows), lr=0.3
    )
    with pytest.raises(RuntimeError, match="another value in the backward"):
        w.sum().backward()


PROBLEM = SoftmaxRegression(torch.randn(2, 6, 4), torch.zeros(2, 6).long(), num_classes=3)


def call(batches, inner=PROBLEM, w0=None, **kwargs):
    return unroll(inner, w0, batches=batches, steps=3, optimizer=SGD(0.1), **kwargs)


ERRORS = {
    "rows float": (
        lambda: call(torch.ones(3, 2, 1)),
        TypeError,
        "row indices.*got torch.float32",
    ),
    "rows tasks": (
        lambda: call(torch.zeros(3, 1).long()),
        ValueError,
        r"\*B = \[2\] and b >= 1.*got \[1\]",
    ),
    "rows none": (
        lambda: call(torch.zeros(3, 2, 0).long()),
        ValueError,
        r"b >= 1, got \[2, 0\]",
    ),
    "rows range": (
        lambda: call(torch.full((3, 2, 1), 6)),
        ValueError,
        "the row 6 at step 0.*0..5",
    ),
    "rows negative": (
        lambda: call(lambda t: torch.full((2, 1), -1)),
        ValueError,
        "the row -1 at step 0",
    ),
    "rows device": (
        lambda: call(torch.zeros(3, 2, 1, device="meta").long()),
        ValueError,
        "are on meta but x is on cpu",
    ),
    "spectral": (
        lambda: call(
            torch.zeros(3, 2).long(), LeastSquares(torch.ones(6, 4), torch.ones(6)), None, method=Spectral()
        ),
        ValueError,
        "batches are given: method=pb.Spectral",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_rows_say_what_and_what_to_do(case):
    attempt, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        attempt()


# ------------------------------------------------------------------------------------------------ in the objectives


def two_levels():
    """Data and problems of both levels: x, y, q, v, inner, outer."""
    x, q = leaf(3, 6, 4), leaf(3, 5, 4)
    y, v = (torch.arange(k).expand(3, k) % 3 for k in (6, 5))
    return x, y, q, v, SoftmaxRegression(x, y), SoftmaxRegression(q, v)


def assert_plain(value, inputs, exact):
    assert_matches(value, exact, "value")
    found, expected = (torch.autograd.grad(z.sum(), list(inputs.values())) for z in (value, exact))
    for name, a, b in zip(inputs, found, expected, strict=True):
        assert_matches(a, b, name)


@pytest.mark.parametrize("memory", [StoreAll(), Revolve(2), "1MiB"], ids=str)
def test_ho_objective_on_rows_is_the_plain_loop(memory):
    rows = torch.randint(6, (STEPS, 3, 2))
    x, y, q, _, inner, outer = two_levels()
    options = {"steps": STEPS, "optimizer": SGD(0.3), "batches": rows, "memory": memory}
    plain = rows_of(partial(SoftmaxRegression, num_classes=3), x, y, torch.ones(3, 6).double(), 0.0)
    w, _ = oracle.unroll(plain, inner.initial(), steps=STEPS, lr=0.3, batches=rows)
    assert_plain(ho_objective(inner, outer, **options), {"x": x, "q": q}, outer(w))
    explained = explain(ho_objective, inner, outer, **options)
    assert explained.backend == "generic" and "batches are given" in explained.reasons[0]
    for run in (ho_objective, partial(explain, ho_objective)):
        with pytest.raises(BackendError, match="batches are given"):
            run(inner, outer, backend="fused", **options)


@pytest.mark.parametrize("verb", ["ho_objective", "ml_objective"])
def test_a_step_size_a_parameter_in_the_objectives_is_the_plain_loop(verb):
    lr = leaf(3, 5, 3, low=0.1)
    x, y, q, v, inner, outer = two_levels()
    verb, args = (ho_objective, (inner, outer)) if verb == "ho_objective" else (ml_objective, (x, y, q, v))
    options = {"steps": STEPS, "optimizer": SGD(lr)}
    value = verb(*args, **options)
    w, _ = oracle.unroll(inner, inner.initial(), steps=STEPS, lr=[lr])
    assert_plain(getattr(value, "loss", value), {"x": x, "q": q, "lr": lr}, outer(w))
    explained = explain(verb, *args, **options)
    assert explained.backend == "generic" and "lr has a value a parameter" in explained.reasons[0]
    for run in (verb, partial(explain, verb)):
        with pytest.raises(BackendError, match="lr has a value a parameter"):
            run(*args, backend="fused", **options)
