"""torch.compile traces through calls on fused problems without a graph break, to equal values and gradients."""

import pytest
import torch
from torch import nn

import pybilevel as pb

Y, V = torch.arange(12).reshape(2, 6) % 3, torch.arange(10).reshape(2, 5) % 3


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """No cache from the test before; and memory that may be compared."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)


def inputs():
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return {
        "x": leaf(2, 6, 4),
        "query": leaf(2, 5, 4),
        "lr": torch.tensor(0.3, dtype=torch.float64, requires_grad=True),
        "momentum": torch.full((2, 1), 0.5, dtype=torch.float64, requires_grad=True),
        "l2": torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True),
        "weights": torch.full((2, 6), 0.8, dtype=torch.float64, requires_grad=True),
        "w0": leaf(2, 5, 3),
    }


def meta_objective(x, query, lr, momentum, l2, weights, w0, memory="auto"):
    loss, logits = pb.ml_objective(
        x,
        Y,
        query,
        V,
        steps=4,
        optimizer=pb.SGD(lr, momentum),
        l2=l2,
        weights=weights,
        w0=w0,
        num_classes=3,
        memory=memory,
        backend="fused",
    )
    return loss.sum() + logits.sin().sum()


def tuning_objective(x, query, lr, momentum, l2, weights, w0):
    inner = pb.SoftmaxRegression(x, Y, num_classes=3, weights=weights, l2=l2)
    outer = pb.SoftmaxRegression(query, V, num_classes=3)
    optimizer = pb.SGD(lr, momentum, nesterov=True)
    return pb.ho_objective(inner, outer, w0, steps=4, optimizer=optimizer, backend="fused").sum()


def unrolled(x, query, lr, momentum, l2, weights, w0):
    inner = pb.LeastSquares(x, x.detach()[..., :3], weights=weights, l2=l2)
    optimizer = pb.SGD(lr, momentum, weight_decay=0.1)
    w = pb.unroll(inner, w0, steps=4, optimizer=optimizer, backend="fused")
    return w.sin().sum() + query.sum()


def with_state(x, query, lr, momentum, l2, weights, w0):
    inner = pb.SoftmaxRegression(x, Y, num_classes=3, weights=weights, l2=l2)
    _, state = pb.unroll(inner, w0, steps=2, optimizer=pb.SGD(lr, momentum), return_state=True)
    w, _ = pb.unroll(inner, state=state, steps=2, optimizer=pb.SGD(lr, momentum), return_state=True)
    return w.sin().sum() + query.sum()


CALLS = [meta_objective, tuning_objective, unrolled, with_state]


def assert_same(compiled, function, **options):
    ours, theirs = inputs(), inputs()
    found, expected = compiled(**ours, **options), function(**theirs, **options)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    for (name, a), b in zip(
        zip(ours, torch.autograd.grad(found, list(ours.values())), strict=True),
        torch.autograd.grad(expected, list(theirs.values())),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("function", CALLS)
def test_full_graph(function):
    assert_same(torch.compile(function, fullgraph=True, backend="aot_eager"), function)


@pytest.mark.parametrize("memory", [pb.StoreAll(), pb.Revolve(1), pb.Periodic(2), "1MiB", 10**6])
def test_full_graph_with_every_schedule(memory):
    compiled = torch.compile(meta_objective, fullgraph=True, backend="aot_eager")
    assert_same(compiled, meta_objective, memory=memory)


def test_an_encoder_in_the_same_graph():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()

    def objective(x, query, **rest):
        return meta_objective(encoder(x), encoder(query), **rest)

    assert_same(torch.compile(objective, fullgraph=True, backend="aot_eager"), objective)


def test_without_gradients():
    compiled = torch.compile(meta_objective, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(**inputs()), meta_objective(**inputs()))


def test_a_changed_step_size_does_not_compile_again():
    """Settings are tensors of the graph, not constants of it."""
    compiled = torch.compile(meta_objective, fullgraph=True, backend="aot_eager")
    values = inputs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lr in (0.1, 0.2):
            given = values | {"lr": torch.tensor(lr, dtype=torch.float64, requires_grad=True)}
            assert torch.allclose(compiled(**given), meta_objective(**given))


@pytest.mark.parametrize("memory", ["auto", pb.StoreAll(), pb.Revolve(1)])
def test_second_backward(memory):
    """The compiled reverse half may not overwrite what a second backward needs."""
    compiled = torch.compile(meta_objective, fullgraph=True, backend="aot_eager")
    values = inputs()
    outer = compiled(**values, memory=memory)
    first, second = (torch.autograd.grad(outer, list(values.values()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dynamic_numbers_of_tasks():
    """One graph for every number of tasks and of rows."""

    def objective(x, y):
        problem = pb.SoftmaxRegression(x, y, num_classes=3)
        return pb.unroll(problem, steps=4, optimizer=pb.SGD(0.3), backend="fused").sin().sum()

    compiled = torch.compile(objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for tasks, n in ((2, 6), (3, 6), (5, 9)):
        x = torch.randn(tasks, n, 4, dtype=torch.float64, requires_grad=True)
        y = torch.arange(tasks * n).reshape(tasks, n) % 3
        (found,) = torch.autograd.grad(compiled(x, y), x)
        (expected,) = torch.autograd.grad(objective(x, y), x)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("function", CALLS)
def test_inductor(function):
    assert_same(torch.compile(function, fullgraph=True), function)
