"""hypergradient(verify=True): right ones pass, whatever made them; wrong ones do not."""

import pytest
import torch
from custom_functions import Detached, Doubled, Sine
from generic_laws import leaf, network, network_case
from optimizer_cases import CASES
from optimizer_settings import settings_of, solver

import pybilevel as pb

STEPS = 6
W0 = torch.randn(4, dtype=torch.float64)


def outer(w):
    return w.sin().sum()


def verified(inner, outer=outer, w0=W0, hparams=None, *, optimizer=None, steps=STEPS, **options):
    optimizer = optimizer or pb.SGD(0.2, 0.5)
    found = pb.hypergradient(
        inner, outer, w0, hparams, steps=steps, optimizer=optimizer, verify=True, **options
    )
    check = found.verification
    assert 0 <= check.difference <= check.limit and 0 <= check.outer_difference <= check.outer_limit
    return found


# ------------------------------------------------------------------------------------------------ right ones pass


@pytest.mark.parametrize("name, variant", CASES)
def test_every_optimizer_on_a_network(name, variant):
    w0, hparams, inputs = network_case()
    settings, leaves = settings_of(name, variant, "step", w0)
    optimizer = solver(name, variant, settings)

    def error(w):
        return sum(x.sin().sum() for x in (w["in"]["weight"], w["in"]["bias"], w["out"]))

    wrt = {**inputs, **leaves}
    found = verified(network, error, w0, hparams, steps=7, optimizer=optimizer, wrt=wrt)
    assert found.verification.means == "forward mode" and found.verification.difference < 1e-9
    plain = pb.hypergradient(network, error, w0, hparams, steps=7, optimizer=optimizer, wrt=wrt)
    assert all(torch.equal(found.grads[key], plain.grads[key]) for key in wrt)
    assert plain.verification is None
    value, grads = found
    assert torch.equal(value, plain.value) and grads is found.grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["fused", "generic"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_fused_problem_and_what_is_derived(lead, backend, dtype):
    """Tensors that are functions of others, and data that both levels share."""
    raw = torch.randn(*lead, 8, dtype=dtype, requires_grad=True)
    mix = torch.randn(4, 4, dtype=dtype, requires_grad=True)
    lr = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    x, q = (torch.randn(*lead, n, 4, dtype=dtype) @ mix for n in (8, 5))
    inner = pb.SoftmaxRegression(x, torch.arange(8).expand(*lead, 8) % 3, weights=raw.sigmoid(), l2=0.1)
    validation = pb.SoftmaxRegression(q, torch.arange(5).expand(*lead, 5) % 3)
    wrt = {"raw": raw, "mix": mix, "lr": lr}
    verified(inner, validation, None, optimizer=pb.SGD(lr, 0.5), wrt=wrt, backend=backend)


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_a_perceptron(backend):
    x, l2 = leaf(2, 7, 2), leaf(low=0.1)
    inner = pb.MLP(x, torch.randn(2, 7, 2).double(), sizes=(2, 3, 2), activation="tanh", l2=l2)
    w0 = [(w.double(), b.double()) for w, b in pb.MLP.init((2, 3, 2))]
    verified(inner, lambda w: sum(a.sin().sum() + b.sum() for a, b in w), w0, wrt=[x, l2], backend=backend)


@pytest.mark.parametrize("method", [pb.Forward(), pb.Spectral(), pb.Reverse()], ids=lambda m: m.name)
def test_every_exact_method(method):
    x, l2 = leaf(6, 3), leaf(low=0.1)
    inner = pb.LeastSquares(x, torch.randn(6, 2).double(), l2=l2)
    verified(inner, lambda w: w.sin().sum(), None, wrt=[x, l2], method=method)


def test_random_losses_batches_and_tasks():
    h, x = leaf(), torch.randn(8, 4).double()

    def inner(w, h, batch):
        return (torch.nn.functional.dropout(batch, 0.3) @ w).square().mean() + h.exp() * w.square().sum()

    def noisy(w):
        return (torch.nn.functional.dropout(x, 0.5) @ w).square().mean()

    rows = leaf(STEPS, 5, 4)
    before = torch.get_rng_state()
    found = verified(inner, noisy, W0, h, batches=rows, wrt=[h, rows])
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    plain = pb.hypergradient(
        inner, noisy, W0, h, steps=STEPS, optimizer=pb.SGD(0.2, 0.5), batches=rows, wrt=[h, rows]
    )
    assert torch.equal(found.value, plain.value) and torch.equal(torch.get_rng_state(), after)
    h = leaf(3, 4)
    verified(lambda w, h: (w * h).cos().sum(), outer, W0, h, in_dims=(None, 0))


def test_what_has_no_influence_is_no_division_by_zero():
    h = leaf(4)
    found = verified(lambda w, h: w.square().sum() + 0 * h.sum(), outer, W0, h)
    assert found.verification.difference == 0 and not found.grads.any()
    verified(lambda w, h: (w * h).sum(), lambda w: 0 * w.sum(), W0, h)
    verified(lambda w, h: (w * h).sum(), outer, W0, h, steps=0)


def test_a_rate_at_convergence_is_rounding_and_no_error():
    x, lr = torch.randn(8, 2).double(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inner = pb.LeastSquares(x, torch.randn(8, 1).double(), l2=0.2)
    verified(inner, lambda w: w.sum(), None, steps=500, optimizer=pb.SGD(lr), wrt=lr)


def test_second_backward_only_is_checked_by_central_differences():
    h = leaf(4)
    found = verified(lambda w, h: (Sine.apply(w * h)).sum(), outer, W0, h)
    assert found.verification.means == "central differences"


# ------------------------------------------------------------------------------------------------ wrong ones do not


@pytest.mark.parametrize("method", [pb.Reverse(), pb.Forward()], ids=lambda m: m.name)
def test_a_wrong_second_derivative_is_caught(method):
    h = leaf(4)

    def inner(w, h):
        return Detached.apply(w * h).sum() + w.square().sum()

    with pytest.raises(pb.VerificationError, match=r"hypergradient is wrong.*central differences") as caught:
        verified(inner, outer, W0, h, method=method)
    assert caught.value.difference > 0.01 > caught.value.limit


def test_a_wrong_backward_of_outer_is_caught():
    h = leaf(4)
    with pytest.raises(pb.VerificationError, match=r"gradient of outer is wrong.*central differences"):
        verified(lambda w, h: (w * h).cos().sum(), lambda w: Doubled.apply(w).sum(), W0, h)


class Hinge(pb.SoftmaxRegression):
    """A problem whose kernels are those of another loss."""

    def row_losses(self, z):
        return 0.9 * super().row_losses(z)


@pytest.mark.parametrize("wrong", ["weights", "l2"])
def test_kernels_of_another_problem_are_caught(wrong):
    x, l2 = torch.randn(6, 3).double(), leaf(low=0.1)
    weights = torch.rand(6).double().requires_grad_()
    inner = Hinge(x, torch.arange(6) % 3, weights=weights, l2=l2)
    wrt = {"weights": weights, "l2": l2}[wrong]
    with pytest.raises(pb.VerificationError):
        verified(inner, lambda w: w.sin().sum(), None, wrt=wrt, backend="fused")
    verified(inner, lambda w: w.sin().sum(), None, wrt=wrt, backend="generic")


def test_a_wrong_pullback_in_one_small_tensor_is_caught(monkeypatch):
    """Even where another tensor has by far the largest gradient."""
    x, l2 = (100 * torch.randn(6, 3).double()).requires_grad_(), leaf(low=0.1)
    inner = pb.LeastSquares(x, torch.randn(6, 1).double(), l2=l2)

    def scaled(w):
        return w.sin().sum()

    options = {"wrt": [l2, x], "optimizer": pb.SGD(1e-5)}
    verified(inner, scaled, None, **options)
    right = torch.autograd.grad

    def wrong(outputs, inputs, *args, **kwargs):
        found = right(outputs, inputs, *args, **kwargs)
        mine = len(inputs) == 2 and inputs[0] is l2 and not kwargs.get("create_graph")
        return (1.001 * found[0], found[1]) if mine else found

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    with pytest.raises(pb.VerificationError, match="hypergradient is wrong"):
        verified(inner, scaled, None, **options)


# ------------------------------------------------------------------------------------------------ errors

STATE = pb.unroll(
    lambda w: w.square().sum(), leaf(4), steps=1, optimizer=pb.SGD(0.2, 0.5), return_state=True
)[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": pb.Implicit()}, r"derivative of all steps, which method=Implicit\(.* is not meant to be"),
        ({"method": pb.Reverse(truncate=2)}, "truncate=2.* is not meant to be: leave verify False"),
        ({"method": pb.Reverse(first_order=True)}, "first_order=True"),
        ({"state": STATE, "w0": None}, r"state has a graph: pass state.detach\(\)"),
        ({"return_state": True}, "return_state is not for ho_objective"),
    ],
)
def test_what_cannot_be_verified(options, text):
    h = leaf(4)
    with pytest.raises(ValueError, match=text):
        verified(lambda w, h: (w * h).cos().sum(), hparams=h, **({"w0": W0} | options))
