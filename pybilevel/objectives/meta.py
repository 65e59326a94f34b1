"""The meta-learning (ML) objective: adapt a linear head to every task, and ask how well it does on the query set."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from pybilevel.checks import check_floating, check_range, check_same, is_number, is_zero
from pybilevel.engine import fused
from pybilevel.engine.call import Backend, Precision
from pybilevel.engine.data import Data
from pybilevel.objectives.outer import evaluate
from pybilevel.optimizers import Optimizer
from pybilevel.problems import LeastSquares, LinearProblem, SoftmaxRegression
from pybilevel.schedules import Schedule

Loss = Literal["cross_entropy", "squared_error"]

_KINDS = {"cross_entropy": SoftmaxRegression, "squared_error": LeastSquares}


class MetaObjective(NamedTuple):
    """What `ml_objective` returns."""

    loss: Tensor
    logits: Tensor


def ml_objective(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    *,
    steps: int,
    optimizer: Optimizer,
    loss: Loss = "cross_entropy",
    l2: float | Tensor = 0.0,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    w0: Tensor | None = None,
    bias: bool = True,
    num_classes: int | None = None,
    memory: str | int | Schedule = "auto",
    backend: Backend = "auto",
    precision: Precision = "fp32",
) -> MetaObjective:
    """The query loss of linear models trained on the support sets, one a task: hyper-representation's objective.

        w_0 given or zero,  w_t = Phi_t(w_{t-1}; support),  loss = (1/m) sum_j v_j l(query_j w_T, query_y_j)

    Differentiable in every floating tensor: support and query (hence the encoder), soft targets, weights, l2, w0 and
    the optimizer's settings. In the fused kernels one operator each way for all tasks.

    Args:
        support: [*B, n, d] features. Ragged tasks: pad, and give the padding weight 0.
        support_y: [*B, n] integer classes, or [*B, n, c] targets.
        query: [*B, m, d] features.
        query_y: [*B, m] integer classes, or [*B, m, c] targets.
        steps: T, the inner steps.
        optimizer: the inner optimizer, such as `pb.SGD(lr)`; lr may be a tensor that is learned.
        loss: of both levels: "cross_entropy", or "squared_error" (half, summed over the outputs).
        l2: a number, () or [*B]: the inner objective's l2/2 |W|^2, bias not regularised.
        weights: [*B, n] example weights of the inner mean.
        query_weights: [*B, m] example weights of the outer mean (divided by m, not by their sum).
        w0: [*B, d+1, c] (without bias [*B, d, c]) initial models; None: zeros.
        bias: give each model a bias.
        num_classes: c; None: the largest class + 1, which reads the labels.
        memory, backend, precision: as in `pb.unroll`.

    Returns:
        loss [*B], one a task (take the mean for the meta-objective), and logits [*B, m, c].

    Cost: as `pb.unroll`, and 2 m d c operations forward, 4 m d c backward for the query set.

    Raises:
        as `pb.unroll`; ValueError too where support and query do not go together.

    Source: Franceschi et al., ICML 2018, section 3.2.
    """
    options: dict[str, Any] = {
        "steps": steps,
        "optimizer": optimizer,
        "memory": memory,
        "backend": backend,
        "precision": precision,
    }
    given = support, support_y, query, query_y, loss, l2, weights, query_weights, bias, num_classes
    data = _data_pair(*given)
    if data is not None:
        results, _ = fused.again(*data, w0, options, look=True, objective=True)
        if results is not None:
            return MetaObjective(results.outer, results.logits)
    return MetaObjective(*evaluate(*problem_pair(*given), w0, **options))


def _data_pair(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    loss: Loss,
    l2: float | Tensor,
    weights: Tensor | None,
    query_weights: Tensor | None,
    bias: bool,
    num_classes: int | None,
) -> tuple[Data, Data] | None:
    """What the problems of `problem_pair` would be made of; all that is known of them is that numbers are in range.

    Labels are not looked at. None where there is anything to say about the arguments, or to do first.
    """
    try:
        kind = _KINDS[loss]
        c = _outputs(support_y, query_y) if num_classes is None else num_classes
        if type(c) is not int or type(bias) is not bool or not (is_number(l2) or isinstance(l2, Tensor)):
            return None
        traits = "mean", c, kind.loss, bias
        inner = Data(kind, support, support_y, weights, None if is_zero(l2) else l2, traits)
        outer = Data(kind, query, query_y, query_weights, None, traits)
        for name, value in (("l2", l2), ("weights", weights), ("query_weights", query_weights)):
            if value is not None:
                check_range(name, value)
    except Exception:  # which the long way says by its name
        return None
    return inner, outer


def problem_pair(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    loss: Loss = "cross_entropy",
    l2: float | Tensor = 0.0,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    bias: bool = True,
    num_classes: int | None = None,
) -> tuple[LinearProblem, LinearProblem]:
    """The inner and the outer problem of `ml_objective`, checked."""
    if loss not in ("cross_entropy", "squared_error"):
        raise ValueError(f'loss must be "cross_entropy" or "squared_error", got {loss!r}')
    try:
        _check_query(query, support)
        if num_classes is None and not support_y.is_floating_point() and not query_y.is_floating_point():
            num_classes = _count_classes(support_y, query_y)
        inner = _problem(loss, support, support_y, num_classes, weights, l2, bias)
        return inner, _problem(loss, query, query_y, inner.num_classes, query_weights, 0.0, bias)
    except Exception as error:
        failure = error
    # say it by the names that arguments have here
    _check_set("support", support, support_y, "weights", weights)
    _check_query(query, support)
    _check_set("query", query, query_y, "query_weights", query_weights)
    raise failure


def _check_set(name: str, x: Tensor, y: Tensor, weights_name: str, weights: Tensor | None) -> None:
    """What the problem would say of x, y and weights, by the names they have here."""
    check_floating(name, x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(
            f"{name} must be [*B, examples, features] with at least one of each, got {list(x.shape)}"
        )
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}_y must be a tensor, got {type(y).__name__}: wrap it in torch.as_tensor")
    rows = x.shape[:-1]
    if y.shape[: len(rows)] != rows or y.ndim > x.ndim:
        raise ValueError(
            f"{name}_y must be classes {list(rows)} or targets {[*rows, 'c']}, got {list(y.shape)}"
        )
    if isinstance(weights, Tensor) and weights.shape != rows:
        raise ValueError(
            f"{weights_name} must be {list(rows)}, one an example of {name}, got {list(weights.shape)}"
        )


def _check_query(query: Tensor, support: Tensor) -> None:
    check_floating("query", query)
    if query.ndim != support.ndim or query.shape[:-2] != support.shape[:-2]:
        raise ValueError(
            f"query must be [*B, m, d] with the tasks of support {list(support.shape)}, got {list(query.shape)}"
        )
    if query.shape[-1] != support.shape[-1]:
        raise ValueError(
            f"query has {query.shape[-1]} features but support has {support.shape[-1]}: query must be [*B, m, d] "
            f"with the features of support {list(support.shape)}, got {list(query.shape)}"
        )
    check_same("query", query, support.dtype, support.device, "support")


def _outputs(support_y: Tensor, query_y: Tensor) -> int | None:
    """c where nobody tells it; None for a mixture of classes and targets."""
    soft = support_y.is_floating_point()
    if soft != query_y.is_floating_point():
        return None
    return support_y.shape[-1] if soft else _count_classes(support_y, query_y)


def _count_classes(*labels: Tensor) -> int:
    return max((int(y.max()) + 1 for y in labels if y.numel()), default=1)


def _problem(
    loss: Loss,
    x: Tensor,
    y: Tensor,
    num_classes: int | None,
    weights: Tensor | None,
    l2: float | Tensor,
    bias: bool,
) -> LinearProblem:
    if loss == "squared_error":
        return LeastSquares(x, y, num_classes=num_classes, weights=weights, l2=l2, bias=bias)
    return SoftmaxRegression(x, y, num_classes=num_classes, weights=weights, l2=l2, bias=bias)
