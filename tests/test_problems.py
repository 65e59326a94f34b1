"""The fused problems as values: formula, shapes, promotion, and the text of every error."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_matches

from pybilevel.problems import LeastSquares, SoftmaxRegression

TASKS = [(), (3,), (2, 3), (0,)]


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def loop_value(problem, rows):
    """L by its formula, task by task; `rows(z, y)` is the loss of each row."""

    def value(w):
        total = []
        tasks = torch.Size(problem.tasks).numel()
        flat = [t.reshape(tasks, *t.shape[len(problem.tasks) :]) for t in (problem.x, problem.y, w)]
        weights = torch.ones(tasks, problem.n, dtype=w.dtype) if problem.weights is None else problem.weights
        weights = weights.reshape(tasks, problem.n)
        l2 = problem.l2.expand(problem.tasks).reshape(tasks)
        for x, y, w_task, s, rho in zip(*flat, weights, l2, strict=True):
            if problem.bias:
                x = torch.cat([x, torch.ones(problem.n, 1, dtype=x.dtype)], -1)
            penalised = w_task[: problem.d]
            data = (s * rows(x @ w_task, y)).sum() * (1 / problem.n if problem.reduction == "mean" else 1)
            total.append(data + rho / 2 * (penalised * penalised).sum())
        return (
            torch.stack(total).reshape(problem.tasks) if total else torch.zeros(problem.tasks, dtype=w.dtype)
        )

    return value


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_softmax_value_is_its_formula(tasks, bias, reduction):
    y = torch.randint(0, 3, (*tasks, 5))
    weights = torch.rand(*tasks, 5, dtype=torch.float64)
    l2 = torch.rand(tasks, dtype=torch.float64)
    problem = SoftmaxRegression(
        double(*tasks, 5, 4), y, num_classes=3, weights=weights, l2=l2, bias=bias, reduction=reduction
    )
    w = double(*problem.shape)
    expected = loop_value(problem, lambda z, y: F.cross_entropy(z, y, reduction="none"))(w)
    assert problem(w).shape == tasks
    assert_matches(problem(w), expected)


@pytest.mark.parametrize("tasks", TASKS)
def test_soft_labels_need_not_sum_to_one(tasks):
    y = torch.rand(*tasks, 5, 3, dtype=torch.float64)
    problem = SoftmaxRegression(double(*tasks, 5, 4), y, l2=0.3)
    w = double(*problem.shape)
    expected = loop_value(problem, lambda z, y: F.cross_entropy(z, y, reduction="none"))(w)
    assert_matches(problem(w), expected)


@pytest.mark.parametrize("tasks", TASKS)
def test_least_squares_value_is_its_formula(tasks):
    problem = LeastSquares(double(*tasks, 5, 4), double(*tasks, 5, 2), l2=0.3)
    w = double(*problem.shape)
    assert_matches(problem(w), loop_value(problem, lambda z, y: 0.5 * ((z - y) ** 2).sum(-1))(w))


def test_hard_labels_equal_one_hot_soft_labels():
    x, y = double(2, 5, 4), torch.randint(0, 3, (2, 5))
    hard = SoftmaxRegression(x, y, num_classes=3)
    soft = SoftmaxRegression(x, F.one_hot(y, 3).double())
    w = double(*hard.shape)
    assert_matches(hard(w), soft(w))


def test_huge_logits_stay_finite():
    problem = SoftmaxRegression(1e4 * double(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert problem(double(5, 3)).isfinite()


def test_flat_targets_are_one_column():
    problem = LeastSquares(double(2, 5, 4), double(2, 5))
    assert (problem.c, problem.shape) == (1, (2, 5, 1))


def test_integer_targets_of_least_squares_are_one_hot():
    y = torch.tensor([0, 2, 1])
    problem = LeastSquares(double(3, 4), y, num_classes=4)
    assert torch.equal(problem.y, F.one_hot(y, 4).double())


def test_dimensions_and_tensors():
    problem = SoftmaxRegression(double(2, 3, 5, 4), torch.zeros(2, 3, 5, dtype=torch.long), num_classes=7)
    assert (problem.tasks, problem.n, problem.d, problem.c) == ((2, 3), 5, 4, 7)
    assert problem.initial().shape == problem.shape == (2, 3, 5, 7)
    assert list(problem.tensors()) == ["x", "l2"]
    soft = SoftmaxRegression(double(5, 4), double(5, 3), weights=torch.ones(5, dtype=torch.float64))
    assert list(soft.tensors()) == ["x", "y", "weights", "l2"]


def test_with_tensors_leaves_the_original():
    problem = SoftmaxRegression(double(5, 4), torch.zeros(5, dtype=torch.long), num_classes=2)
    other = problem.with_tensors({"x": 2 * problem.x})
    assert torch.equal(other.x, 2 * problem.x) and other.y is problem.y and other.c == 2
    assert type(other) is SoftmaxRegression


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_promoted_differentiably(dtype):
    x = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    problem = SoftmaxRegression(x, torch.zeros(5, dtype=torch.long), num_classes=2).promoted()
    assert problem.x.dtype == problem.l2.dtype == problem.dtype == torch.float32
    problem(problem.initial()).backward()
    assert x.grad.dtype == dtype


X, Y = torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SoftmaxRegression(X.int(), Y), TypeError, "x must be floating point, got torch.int32"),
        (lambda: SoftmaxRegression([1.0], Y), TypeError, "x must be a tensor, got list"),
        (lambda: SoftmaxRegression(X, [0]), TypeError, "y must be a tensor, got list"),
        (
            lambda: SoftmaxRegression(torch.ones(3), Y),
            ValueError,
            r"x must be \[\*B, n, d\], got shape \[3\]",
        ),
        (lambda: SoftmaxRegression(X[:, :0], Y[:, :0]), ValueError, "n >= 1 examples"),
        (
            lambda: SoftmaxRegression(X, Y[0]),
            ValueError,
            r"integer y must be \[\*B, n\] = \[2, 5\], got \[5\]",
        ),
        (lambda: SoftmaxRegression(X, Y - 1, num_classes=3), ValueError, r"the label -1, outside \[0, 3\)"),
        (lambda: SoftmaxRegression(X, Y + 3, num_classes=3), ValueError, r"the label 3, outside \[0, 3\)"),
        (
            lambda: SoftmaxRegression(X, Y, num_classes=0),
            ValueError,
            "num_classes must be an int >= 1, got 0",
        ),
        (lambda: SoftmaxRegression(X[:0], Y[:0]), ValueError, "cannot be inferred from an empty y"),
        (lambda: SoftmaxRegression(X, Y.bool()), TypeError, "got torch.bool"),
        (
            lambda: SoftmaxRegression(X, torch.rand(2, 5, 3).double()),
            TypeError,
            "y is torch.float64 but x is torch.f",
        ),
        (lambda: SoftmaxRegression(X, torch.rand(2, 4, 3)), ValueError, r"y must be \[\*B, n, c\]"),
        (lambda: SoftmaxRegression(X, torch.rand(2, 5, 0)), ValueError, "c >= 1 columns"),
        (lambda: SoftmaxRegression(X, torch.rand(2, 5, 3), num_classes=2), ValueError, "y has 3 columns"),
        (lambda: SoftmaxRegression(X, Y.to("meta")), ValueError, "y is on meta but x is on cpu"),
        (
            lambda: SoftmaxRegression(X, Y, weights=torch.ones(5)),
            ValueError,
            r"weights must be \[\*B, n\] = \[2, 5\]",
        ),
        (
            lambda: SoftmaxRegression(X, Y, weights=torch.ones(2, 5).double()),
            TypeError,
            "weights is torch.float64",
        ),
        (
            lambda: SoftmaxRegression(X, Y, weights=-torch.ones(2, 5)),
            ValueError,
            "weights must be finite and >= 0",
        ),
        (lambda: SoftmaxRegression(X, Y, l2=-0.1), ValueError, "l2 must be finite and >= 0, got -0.1"),
        (lambda: SoftmaxRegression(X, Y, l2=float("nan")), ValueError, "l2 must be finite and >= 0, got nan"),
        (lambda: SoftmaxRegression(X, Y, l2="0.1"), TypeError, "l2 must be a number or a tensor"),
        (
            lambda: SoftmaxRegression(X, Y, l2=torch.ones(3)),
            ValueError,
            r"l2 must be \(\) or \[\*B\] = \[2\], got \[3\]",
        ),
        (lambda: SoftmaxRegression(X, Y, reduction="none"), ValueError, 'reduction must be "mean" or "sum"'),
        (lambda: LeastSquares(X, torch.rand(2, 4)), ValueError, r"y must be \[\*B, n, c\]"),
        (
            lambda: LeastSquares(X, torch.rand(2, 5, 3), num_classes=2),
            ValueError,
            "num_classes is 2 but y has 3",
        ),
    ],
)
def test_bad_input_says_what_and_what_to_do(make, error, text):
    with pytest.raises(error, match=text):
        make()
