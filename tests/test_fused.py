"""The fused engine around its kernels: what it keeps, what it says, and what it refuses. tests/laws has the laws."""

import pytest
import torch
from linear_cases import Built, Case, exact, forced, fused, total
from small_problems import leaf, problem, unroll
from tolerance import assert_matches

import pybilevel as pb
from pybilevel.engine.itinerary import one_way

COORDINATES = ["primal", "dual", "lanes"]


# ------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_and_stride(dtype):
    x, y = torch.randn(3, 6, 4), torch.arange(18).reshape(3, 6) % 3
    strided = y.mT.contiguous().to(dtype).mT
    expected = unroll(pb.SoftmaxRegression(x, y, num_classes=3))
    assert torch.equal(unroll(pb.SoftmaxRegression(x, strided, num_classes=3)), expected)


@pytest.mark.parametrize("objective", ["ho", "ml"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_each_gradient_alone_is_bitwise_the_same(coordinates, objective):
    case = Case(targets="soft", objective=objective, variant="nesterov-decay")
    with forced(coordinates):
        expected = fused(case).gradients
        for name in expected:
            leaves = {k: v.detach().requires_grad_(k == name) for k, v in case.inputs().items()}
            (found,) = torch.autograd.grad(total(Built(case, leaves).fused()), leaves[name])
            assert torch.equal(found, expected[name]), name


def test_one_tensor_in_two_places():
    """Support and query may share features, and x may be w0's ancestor: gradients add up."""
    x = leaf(3, 6, 4)
    y = torch.arange(18).reshape(3, 6) % 3
    options = {"steps": 3, "optimizer": pb.SGD(0.3), "num_classes": 3}
    losses = [pb.ml_objective(x, y, x, y, backend=b, **options).loss.sum() for b in ("fused", "generic")]
    found, expected = (torch.autograd.grad(loss, x)[0] for loss in losses)
    assert_matches(found, expected)


def test_inputs_changed_in_place_before_the_backward_are_noticed():
    x = leaf(3, 6, 4)
    copy = x * 1
    w = unroll(problem(copy))
    copy.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


# ------------------------------------------------------------------------------------------------ backward


def test_no_grad_and_inference_mode_give_the_same_values():
    x = leaf(3, 6, 4)
    expected = unroll(problem(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = unroll(problem(x))
        assert not found.requires_grad and torch.equal(found, expected)


def objective(x):
    y = torch.arange(18).reshape(3, 6) % 3
    return pb.ml_objective(x, y, x.detach(), y, steps=3, optimizer=pb.SGD(0.3), num_classes=3)


def test_a_gradient_with_create_graph_can_be_used_as_a_value():
    """A gradient penalty on other terms of the same graph does not trip over the fused ones."""
    x = leaf(3, 6, 4)
    loss = objective(x).loss.sum()
    (with_graph,) = torch.autograd.grad(loss, x, create_graph=True)
    (without,) = torch.autograd.grad(objective(x).loss.sum(), x)
    assert torch.equal(with_graph, without)


def test_accumulation_over_calls():
    x = leaf(3, 6, 4)
    (once,) = torch.autograd.grad(unroll(problem(x)).sin().sum(), x)
    for _ in range(2):
        unroll(problem(x)).sin().sum().backward()
    assert torch.equal(x.grad, once + once)


# ------------------------------------------------------------------------------------------------ divergence


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("bad", [1, 2, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_divergence_names_the_first_bad_step(coordinates, bad, momentum):
    lr = torch.full((3, 5), 0.1)
    lr[1, bad - 1] = 3e38
    lr[2, -1] = 3e38  # another task diverges later
    x = 100 * torch.randn(3, 6, 4)
    y = 100 * torch.randn(3, 6, 2)
    with (
        forced(coordinates),
        pytest.raises(pb.DivergenceError, match=rf"w_{bad} is not finite \(step {bad}\); lower lr") as e,
    ):
        unroll(pb.LeastSquares(x, y), lr=lr, momentum=momentum)
    assert e.value.step == bad


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_an_initial_point_that_is_not_finite_is_step_0(coordinates):
    w0 = torch.zeros(3, 5, 3, dtype=torch.float64)
    w0[2, 1, 1] = float("nan")
    with forced(coordinates), pytest.raises(pb.DivergenceError) as caught:
        unroll(problem(), w0)
    assert caught.value.step == 0


def test_divergence_of_the_objectives_and_without_gradients():
    x = 1e3 * torch.randn(2, 6, 4)
    y = torch.randn(2, 6, 1)
    options = {"steps": 60, "optimizer": pb.SGD(1e3)}
    with pytest.raises(pb.DivergenceError):
        pb.ml_objective(x, y, x, y, loss="squared_error", backend="fused", **options)
    with torch.no_grad(), pytest.raises(pb.DivergenceError):
        pb.ho_objective(pb.LeastSquares(x, y), pb.LeastSquares(x, y), **options)


# ------------------------------------------------------------------------------------------------ backend


class Mine:
    """Some optimizer that the registry does not know."""

    name = "mine"

    def settings(self):
        return {"lr": torch.ones(3, 5, 3, dtype=torch.float64)}

    def init(self, w):
        return ()

    def step(self, w, g, buffers, settings):
        return w - settings["lr"] * g, ()


def test_fused_lists_every_reason():
    with pytest.raises(pb.BackendError) as caught:
        pb.unroll(problem(), steps=3, optimizer=Mine(), backend="fused")
    text = str(caught.value)
    assert 'backend="fused" cannot run this call:' in text and "Remedy: " in text
    assert (
        "  - the optimizer 'mine' has no native kernel (need pb.Adagrad, pb.Adam, pb.AdamW, pb.RMSprop, pb.SGD)\n"
        in text
    )
    assert "  - lr has a value a parameter (need one a step or a task)\n" in text
    assert len(caught.value.reasons) == 2


def test_fused_refuses_callables_and_other_losses():
    with pytest.raises(pb.BackendError, match="inner is a function, not a fused problem"):
        pb.unroll(lambda w: w.sum(), torch.ones(3), steps=3, optimizer=pb.SGD(0.1), backend="fused")

    class Huber(pb.LeastSquares):
        loss = "huber"

    with pytest.raises(pb.BackendError, match="the loss 'huber' has no native kernel"):
        unroll(Huber(torch.randn(4, 3), torch.randn(4)))


def test_auto_takes_the_fused_kernels_and_they_agree_with_the_generic_engine():
    case = Case(objective="state", variant="nesterov-decay")
    built = Built(case, case.inputs())
    explained = pb.explain(pb.unroll, built.problem, built.w0, steps=5, optimizer=built.solver())
    assert explained.backend == "fused"
    generic = built.fused(backend="generic")
    for name, value in built.fused(backend="auto").items():
        assert_matches(value, exact(case).values[name])
        assert_matches(generic[name], exact(case).values[name])


def test_explain_of_the_fused_engine():
    x = torch.randn(20, 5, 64, requires_grad=True)
    inner = problem(x, c=5)
    explained = pb.explain(
        pb.unroll, inner, steps=10, optimizer=pb.SGD(0.1), memory=pb.Revolve(2), backend="fused"
    )
    assert (explained.coordinates, explained.slots, explained.steps) == ("dual", 2, 10)
    assert explained.recomputation == pb.Revolve(2).plan(10).factor > 1
    assert "a thread per task" in explained.regime and "dual, by operations: primal " in explained.regime
    assert explained.peak_memory > 0 and "fused" in str(explained)


def test_the_plan_without_gradients_is_one_way():
    for steps, ops in ((0, []), (1, []), (9, [8 << 3 | 2])):
        plan, *rest = one_way(steps)
        assert plan.tolist() == ops and plan.dtype == torch.int32
        assert rest == [0, 0, False]
