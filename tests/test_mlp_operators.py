"""The operators of `pb.MLP`: torch's own checks, bad arguments, torch.compile."""

import pytest
import torch
from mlp_cases import Built, MlpCase
from test_mlp import SGD, SIZES, data, of
from tolerance import assert_all_match
from torch.utils import _pytree as pytree

import pybilevel as pb


def test_opcheck():
    """Schema, fake tensors and the registered autograd."""
    from pybilevel.engine.arguments import normalise
    from pybilevel.engine.perceptron import lay_out

    torch.use_deterministic_algorithms(False)  # NaN in fresh memory is not equal to itself
    for objective in ("state", "ho"):
        built = Built(case := MlpCase(objective=objective), case.inputs())
        call = normalise(built.problem, built.w0, steps=case.steps, optimizer=built.solver())
        layout = lay_out(call, built.outer)
        arguments = [
            a.detach().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a
            for a in layout.arguments(layout.itinerary())
        ]
        torch.library.opcheck(torch.ops.pybilevel.mlp_unroll.default, tuple(arguments))


def test_the_operator_checks_its_arguments():
    """It may be called without the engine."""
    case = MlpCase()
    with pytest.raises(ValueError, match=r"sizes \[3, 9, 5, 4\] go from the features of x"):
        wrong(case, -1, (3, 9, 5, 4))
    with pytest.raises(ValueError, match="unknown activation 'gelu'; known: relu"):
        wrong(case, -2, "gelu")
    with pytest.raises(ValueError, match="needs w0"):
        wrong(case, 4, None)
    with pytest.raises(ValueError, match=r"w0 must be \[3, 1, 98\], got \[3, 1, 97\]"):
        wrong(case, 4, torch.zeros(3, 1, 97, dtype=torch.float64))


def wrong(case, place, value):
    """The operator on the arguments of a case, one of them replaced."""
    from pybilevel.engine.arguments import normalise
    from pybilevel.engine.perceptron import lay_out

    built = Built(case, case.inputs())
    call = normalise(built.problem, built.w0, steps=case.steps, optimizer=built.solver())
    layout = lay_out(call, None)
    arguments = list(layout.arguments(layout.itinerary()))
    arguments[place] = value
    torch.ops.pybilevel.mlp_unroll(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [0, 1, 5])
def test_a_point_of_all_tasks(tasks, dtype):
    """w0 [1, 1, P]: the same results as from a copy a task, and the sum of the gradients of the copies."""
    from pybilevel.engine.arguments import normalise
    from pybilevel.engine.perceptron import lay_out
    from pybilevel.ops import mlp_unroll

    case = MlpCase(tasks=(tasks,), objective="ho", shared=False, dtype=dtype)
    built = Built(case, case.inputs())
    call = normalise(built.problem, built.w0, steps=case.steps, optimizer=built.solver())
    layout = lay_out(call, built.outer)
    arguments = [
        a.detach() if isinstance(a, torch.Tensor) else a for a in layout.arguments(layout.itinerary())
    ]
    scalars = arguments[4].shape[-1]
    point = torch.randn(1, 1, scalars, dtype=dtype, generator=torch.Generator().manual_seed(7)) / 2
    found = []
    for w0 in (point.clone(), point.repeat(tasks, 1, 1)):
        arguments[4] = w0.requires_grad_()
        results = mlp_unroll(*arguments)
        found.append((results, *torch.autograd.grad(results.outer.sum() + results.w.square().sum(), w0)))
    (ours, shared), (theirs, each) = found
    for name in ("w", "outer", "logits"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert shared.shape == (1, 1, scalars)
    assert torch.equal(shared, each.double().sum(0, keepdim=True).to(dtype))


def test_compiled():
    """One graph, forward and backward, with the same numbers."""
    x, y = data(3)
    leaves = [leaf.requires_grad_() for leaf in pytree.tree_leaves(pb.MLP.init(SIZES, dtype=torch.float64))]

    def outer(*leaves):
        inner = of(x, y)
        return pb.ho_objective(inner, inner, list(leaves), steps=3, optimizer=SGD, backend="fused").sum()

    expected = torch.autograd.grad(outer(*leaves), leaves)
    compiled = torch.compile(outer, backend="aot_eager", fullgraph=True)
    assert_all_match(torch.autograd.grad(compiled(*leaves), leaves), expected)
