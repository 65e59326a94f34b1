"""The spectral method as a call: an autograd node, a state, its errors, and where it diverges."""

import pytest
import torch
from linear_cases import Built, exact, total
from spectral_cases import SPECTRAL, case_of, gradients, spectral
from tolerance import assert_all_match

import pybilevel as pb

# ------------------------------------------------------------------------------------------------ as an autograd node


def small(**options):
    case = case_of(**options)
    leaves = case.inputs()
    return case, leaves, Built(case, leaves)


def test_going_on_from_a_state_is_one_run():
    """Values and every gradient, those through the state included."""
    case, leaves, built = small(variant="momentum-decay", steps=12)
    options = {"optimizer": built.solver(), "method": pb.Spectral()}
    _, state = pb.unroll(built.problem, built.w0, steps=5, return_state=True, **options)
    w, last = pb.unroll(built.problem, steps=7, state=state, return_state=True, **options)
    assert last.step == 12
    values, found = gradients(case, {"w": w, "buffer0": last.buffers[0][0]}, leaves)
    assert_all_match(values, exact(case).values)
    assert_all_match(found, exact(case).gradients)


def test_it_is_never_chosen_silently():
    """A call that does not ask for it steps, however many steps there are."""
    x = torch.randn(40, 6, requires_grad=True)
    problem, rule = pb.LeastSquares(x, x.detach()[:, :2]), {"steps": 3000, "optimizer": pb.SGD(0.1)}
    assert pb.explain(pb.unroll, problem, **rule).coordinates != "spectral"
    found = [pb.unroll(problem, **rule, **asked) for asked in ({}, {"method": pb.Reverse()})]
    assert torch.equal(*found)
    grads = [torch.autograd.grad(w.sum(), x)[0] for w in found]
    assert torch.equal(*grads)


def test_each_gradient_alone_is_the_same():
    case, leaves, _ = small(variant="nesterov-decay")
    _, expected = spectral(case)
    for name in leaves:
        alone = {k: v.detach().requires_grad_(k == name) for k, v in leaves.items()}
        (found,) = torch.autograd.grad(total(Built(case, alone).fused(**SPECTRAL)), alone[name])
        assert torch.equal(found, expected[name]), name


def test_a_second_backward_and_no_double_backward():
    _, leaves, built = small()
    value = total(built.fused(**SPECTRAL))
    first, again = (torch.autograd.grad(value, leaves["l2"], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    (graph,) = torch.autograd.grad(value, leaves["l2"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        graph.sum().backward()


def test_inputs_changed_in_place_before_the_backward_are_noticed():
    x = torch.randn(5, 3, requires_grad=True)
    copy = x * 1
    inner = pb.LeastSquares(copy, torch.randn(5, 2), bias=False)
    w = pb.unroll(inner, steps=3, optimizer=pb.SGD(0.1), method=pb.Spectral())
    copy.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


# ------------------------------------------------------------------------------------------------ errors


class Signs:
    """An optimizer whose step is not affine."""

    name = "signs"

    def settings(self):
        return {"lr": 0.1}

    def init(self, w):
        return ()

    def step(self, w, g, buffers, settings):
        return w - settings["lr"] * g.sign(), ()


_SEED = torch.Generator().manual_seed(0)  # whatever was imported before
X, Y = torch.randn(2, 6, 4, generator=_SEED), torch.randn(2, 6, 3, generator=_SEED)
SQUARES = pb.LeastSquares(X, Y)
ERRORS = {
    "callable": (
        lambda w: w.square().sum(),
        {"w0": torch.zeros(3)},
        ValueError,
        "pb.LeastSquares, got a function",
    ),
    "optimizer": (SQUARES, {"optimizer": Signs()}, ValueError, "needs optimizer to be a pb.SGD, got .*Signs"),
    "softmax": (
        pb.SoftmaxRegression(X, Y.softmax(-1)),
        {},
        ValueError,
        "got a SoftmaxRegression: only .* squared",
    ),
    "lr per step": (
        SQUARES,
        {"optimizer": pb.SGD(torch.full((3,), 0.1))},
        ValueError,
        "^lr has 3 values, one a step",
    ),
    "momentum per step": (
        SQUARES,
        {"optimizer": pb.SGD(0.1, torch.full((2, 3), 0.1))},
        ValueError,
        "^momentum has 3 values, one a step",
    ),
    "callback": (SQUARES, {"callback": print}, ValueError, "^callback is given"),
    "decay per parameter": (
        SQUARES,
        {"optimizer": pb.SGD(0.1, weight_decay=torch.ones(SQUARES.shape))},
        ValueError,
        "^weight_decay has a value a parameter",
    ),
    "fused": (SQUARES, {"backend": "fused"}, pb.BackendError, "'spectral' has no native kernel"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_it_cannot_run_says_why_and_what_to_do(case):
    inner, options, error, text = ERRORS[case]
    options = {"steps": 3, "optimizer": pb.SGD(0.1), "method": pb.Spectral()} | options
    for call in (pb.unroll, lambda *args, **kwargs: pb.explain(pb.unroll, *args, **kwargs)):
        with pytest.raises(error, match=text) as caught:
            call(inner, **options)
        assert "use method=pb.Reverse()" in str(caught.value)


@pytest.mark.parametrize(("lr", "momentum"), [(30.0, 0.0), (8.0, 0.0), (30.0, 0.9)])
def test_divergence_is_found_at_the_same_step(lr, momentum):
    steps = []
    for method in (pb.Spectral(), pb.Reverse()):
        with pytest.raises(pb.DivergenceError) as caught:
            pb.unroll(SQUARES, steps=500, optimizer=pb.SGD(lr, momentum), method=method)
        steps.append(caught.value.step)
    assert steps[0] == steps[1] > 1


@pytest.mark.parametrize(("where", "step"), [("x", 1), ("y", 1), ("w0", 0)])
def test_not_a_number_is_named_by_the_iterate_it_makes(where, step):
    given = {"x": X.clone(), "y": Y.clone(), "w0": torch.zeros(SQUARES.shape)}
    given[where][0, 0, 0] = float("nan")
    inner = pb.LeastSquares(given["x"], given["y"])
    with pytest.raises(pb.DivergenceError) as caught:
        pb.unroll(inner, given["w0"], steps=9, optimizer=pb.SGD(0.1), method=pb.Spectral())
    assert caught.value.step == step
