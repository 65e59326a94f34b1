"""Modules as inner problems: parameters by name, subsets, and the three policies for buffers, against plain loops."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, assert_law, generic, leaf
from module_cases import PLANS, Averaging, X, Y, buffers_of, criterion, make, unchanged
from tolerance import assert_matches
from torch import nn
from torch.func import functional_call

from pybilevel.engine.unroll import unroll
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss
from pybilevel.schedules import Revolve

# ------------------------------------------------------------------------------------------------ parameters


def test_the_least_that_a_user_writes():
    net, lr = make(), leaf(low=0.1)
    inner = ModuleLoss(net, criterion)
    w = unroll(inner, inner.parameters(), steps=STEPS, optimizer=SGD(lr), batches=(X, Y))
    criterion(lambda x: functional_call(net, w, (x,)), (X[0], Y[0])).backward()
    assert lr.grad is not None and all(p.grad is not None for p in net.parameters())
    inner.load(w)
    assert all(torch.equal(p, w[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("which", [["3"], lambda name: name.startswith("3"), ["3.weight", "3.bias"], "3"])
@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_law_on_a_subset_the_rest_are_hyperparameters(which, memory):
    net = make(lambda n: nn.Identity())
    inner = ModuleLoss(net, criterion)
    w0 = inner.parameters(which)
    assert set(w0) == {"3.weight", "3.bias"} and w0["3.bias"] is net[3].bias
    inputs = dict(net.named_parameters())
    assert_law(inner, w0, inputs=inputs, batches=(X, Y), memory=memory, lr=0.3, momentum=0.5)


def test_hparams_come_before_the_batch():
    net, h = make(), leaf(low=0.1)

    def loss(model, h, batch):
        return h * criterion(model, batch)

    inner = ModuleLoss(net, loss)
    assert_law(inner, inner.parameters(), h, inputs={"h": h}, batches=(X, Y), lr=0.3)
    inner = ModuleLoss(net, lambda model, h: h * model(X[0]).square().mean())
    assert_law(inner, inner.parameters(), h, inputs={"h": h}, lr=0.3)
    inner = ModuleLoss(net, lambda model: model(X[0]).square().mean())
    assert_law(inner, inner.parameters(), inputs={"w": net[0].weight}, lr=0.3)


def test_submodules_attributes_and_several_calls_see_the_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head, self.scale = (
                nn.Linear(4, 5),
                nn.Linear(5, 3),
                nn.Parameter(torch.ones(())),
            )

        def forward(self, x):
            return self.head(self.encode(x))

        def encode(self, x):
            return self.scale * self.encoder(x).tanh()

    net = Net().double()

    def loss(model, batch):
        return (
            criterion(model, batch)
            + model.encode(batch[0]).square().mean()
            + model.scale**2 * model.head.bias.cos().sum()
        )

    def plain(w, batch):
        z = w["scale"] * F.linear(batch[0], w["encoder.weight"], w["encoder.bias"]).tanh()
        value = F.cross_entropy(F.linear(z, w["head.weight"], w["head.bias"]), batch[1])
        return value + z.square().mean() + w["scale"] ** 2 * w["head.bias"].cos().sum()

    inner = ModuleLoss(net, loss)
    w0 = inner.parameters()
    assert_law(inner, w0, inputs=w0, batches=(X, Y), plain=plain, lr=0.1)


def test_tied_parameters_are_one():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    net[2].weight = net[0].weight
    inner = ModuleLoss(net, lambda model, batch: model(batch[0]).square().mean())

    def plain(w, batch):
        hidden = F.linear(batch[0], w["0.weight"], w["0.bias"]).tanh()
        return F.linear(hidden, w["0.weight"], w["2.bias"]).square().mean()

    w0 = inner.parameters()
    assert set(w0) == {"0.weight", "0.bias", "2.bias"}
    assert_law(inner, w0, inputs=w0, batches=(X, Y), plain=plain, lr=0.3)


def test_frozen_parameters_are_left_out_by_default():
    net = make()
    net[0].requires_grad_(False)
    assert set(ModuleLoss(net, criterion).parameters()) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_dropout_follows_the_mode_of_the_module():
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    inner = ModuleLoss(net, criterion)
    inputs = inner.parameters()
    assert_law(inner, inner.parameters(), inputs=inputs, batches=(X, Y), memory=Revolve(2), lr=0.3)
    net.eval()
    runs = [generic(inner, inner.parameters(), batches=(X, Y), lr=0.3)["0.weight"] for _ in range(2)]
    assert torch.equal(*runs)


def test_a_loss_that_raises_leaves_the_module_as_it_was():
    net = make()
    before = buffers_of(net)
    for policy in ("batch", "frozen", "carry"):
        inner = ModuleLoss(net, lambda model, batch: 1 / 0, buffers=policy)
        with pytest.raises(ZeroDivisionError):
            generic(inner, inner.parameters(), batches=(X, Y), lr=0.3)
        assert unchanged(net, before) and net[1].training


def test_it_is_a_callable():
    net = make()
    inner = ModuleLoss(net, criterion)
    value = inner(inner.parameters(), (X[0], Y[0]))
    assert_matches(value, criterion(net, (X[0], Y[0])))
    assert "Sequential" in repr(inner)


def carry(**kwargs):
    inner = ModuleLoss(make(), criterion, buffers="carry")
    return generic(inner, kwargs.pop("w0", inner.parameters()), batches=(X, Y), lr=0.1, **kwargs)


def averaging_state():
    inner = ModuleLoss(Averaging().double(), criterion, buffers="carry")
    return generic(inner, inner.parameters(), batches=(X, Y), lr=0.1, return_state=True)[1]


INNER = ModuleLoss(make(), criterion)
ERRORS = {
    "net": (lambda: ModuleLoss(lambda x: x, criterion), TypeError, "net must be a torch.nn.Module"),
    "loss": (lambda: ModuleLoss(make(), 3), TypeError, "loss must be a callable .* got 3"),
    "policy": (
        lambda: ModuleLoss(make(), criterion, buffers="keep"),
        ValueError,
        "one of batch, frozen, carry, got 'keep'",
    ),
    "name": (
        lambda: INNER.parameters(["nose"]),
        ValueError,
        "no parameter or submodule 'nose': it has 0.weight",
    ),
    "nothing": (
        lambda: INNER.parameters(lambda name: False),
        ValueError,
        "which selects no parameter of net",
    ),
    "unknown": (lambda: carry(w0={"nose": leaf(3)}), ValueError, "net has no parameter nose"),
    "no dict": (lambda: carry(w0=leaf(3)), TypeError, "w must be a dict of parameters by name, got Tensor"),
    "load shape": (
        lambda: INNER.load({"0.bias": torch.zeros(2, 5)}),
        ValueError,
        r"0.bias has shape \[2, 5\] but in net \[5\]",
    ),
    "load buffer": (lambda: INNER.load({}, {"nose": torch.zeros(1)}), ValueError, "net has no buffer 'nose'"),
    "state": (
        lambda: carry(w0=None, state=averaging_state()),
        ValueError,
        "state has the buffers mean.*1.running_mean",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_modules_say_what_and_what_to_do(case):
    attempt, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        attempt()
