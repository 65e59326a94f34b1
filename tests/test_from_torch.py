"""From torch.optim and back: the same settings, the same buffers, the same steps; what has no counterpart is named."""

import pytest
import torch
from generic_laws import gradients, leaf
from tolerance import assert_matches
from torch.utils import _pytree as pytree

import pybilevel as pb
from pybilevel.engine import oracle

KINDS = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    (torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.8, "eps": 1e-3}),
    (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.7, "centered": True, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.2}),
    (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-3}),
]
each_kind = pytest.mark.parametrize(
    "kind, settings", KINDS, ids=lambda part: getattr(part, "__name__", str(part))
)


def parameters():
    generator = torch.Generator().manual_seed(3)
    shapes = {"weight": (4, 3), "bias": (3,), "scale": ()}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items()
    }


def loss(w):
    return ((w["weight"].sin().sum(0) + w["bias"]).square() * w["scale"].cos()).sum()


def train(optimizer, w, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(w).backward()
        optimizer.step()


def in_groups(kind, settings, w):
    """The bias has its own learning rate."""
    groups = [{"params": [w["weight"], w["scale"]]}, {"params": [w["bias"]], "lr": 0.03}]
    return kind(groups, **settings)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("before", [0, 5])
@each_kind
def test_an_unroll_goes_on_where_torch_stopped_and_torch_goes_on_after_it(kind, settings, before, own):
    """12 steps of torch.optim, or 4 of them by an unroll in the middle."""
    w, expected = parameters(), parameters()
    one, other = kind(list(w.values()), **settings), kind(list(expected.values()), **settings)
    train(one, w, before)
    train(other, expected, 12)
    w0 = w if own else pytree.tree_map(torch.clone, w)
    found, state = pb.unroll(
        loss,
        steps=4,
        optimizer=pb.from_torch(one, w0),
        state=pb.State.from_torch(one, w0),
        return_state=True,
    )
    assert all(not torch.equal(found[name], w[name]) for name in w)
    state.to_torch(one)
    train(one, w, 12 - before - 4)
    for name in w:
        assert_matches(w[name], expected[name], name)
        assert one.state[w[name]].keys() == other.state[expected[name]].keys()
        for key, value in other.state[expected[name]].items():
            if value is not None:
                assert_matches(one.state[w[name]][key].double(), value.double(), key)


@each_kind
def test_parameter_groups_become_settings_of_parameters(kind, settings):
    w, expected = parameters(), parameters()
    one, other = in_groups(kind, settings, w), in_groups(kind, settings, expected)
    optimizer = pb.from_torch(one, w)
    assert optimizer.lr == {"weight": 0.1, "bias": 0.03, "scale": 0.1}
    found = pb.unroll(loss, w, steps=6, optimizer=optimizer)
    train(other, expected, 6)
    for name in w:
        assert_matches(found[name], expected[name], name)


def test_some_of_the_parameters():
    w = parameters()
    adam = torch.optim.Adam(w.values(), lr=0.1)
    train(adam, w, 3)
    part = {"scale": w["scale"], "bias": w["bias"]}
    frozen = w["weight"].detach().clone()
    _, state = pb.unroll(
        lambda some: loss({**some, "weight": frozen}),
        steps=2,
        optimizer=pb.from_torch(adam, part),
        state=pb.State.from_torch(adam, part),
        return_state=True,
    )
    assert state.step == 5
    state.to_torch(adam, part)
    assert torch.equal(w["weight"], frozen) and torch.equal(w["bias"], state.w["bias"])
    assert [int(adam.state[p]["step"]) for p in w.values()] == [3, 5, 5]


def test_hypergradients_go_through_the_state_and_through_replaced_settings():
    w = parameters()
    adam = torch.optim.Adam(w.values(), lr=0.1, betas=(0.8, 0.9), eps=1e-3)
    train(adam, w, 3)
    lr = leaf(low=0.05)
    optimizer = pb.from_torch(adam, lr=lr)
    found = pb.unroll(loss, steps=4, optimizer=optimizer, state=pb.State.from_torch(adam, w))
    buffers = {name: {k: adam.state[p][name] for k, p in w.items()} for name in ("exp_avg", "exp_avg_sq")}
    settings = {"lr": lr, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
    exact, _ = oracle.unroll(loss, w, steps=4, rule="adam", buffers=buffers, start=3, **settings)
    inputs = {**w, "lr": lr}
    for name, expected in gradients(exact, inputs).items():
        assert_matches(gradients(found, inputs)[name], expected, name)


def test_a_learning_rate_that_is_a_tensor_is_differentiated():
    w, lr = parameters(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimizer = pb.from_torch(torch.optim.SGD(w.values(), lr=lr))
    pb.unroll(loss, w, steps=2, optimizer=optimizer)["weight"].sum().backward()
    assert lr.grad.abs() > 0


def test_the_state_is_a_copy_that_torch_does_not_change():
    w = parameters()
    adam = torch.optim.Adam(w.values(), lr=0.1)
    train(adam, w, 2)
    state = pb.State.from_torch(adam, w)
    kept = [b.clone() for buffers in state.buffers for b in buffers]
    train(adam, w, 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, (b for bs in state.buffers for b in bs), strict=True))


def two_groups(kind, *, second, **first):
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return kind([{"params": [a]}, {"params": [b], **second}], **first)


def one_group(kind=torch.optim.SGD, **settings):
    return kind([torch.nn.Parameter(torch.ones(2))], **settings)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: pb.from_torch(one_group(lr=0.1, momentum=0.9, dampening=0.5)), ValueError, "dampening=0.5"),
        (lambda: pb.from_torch(one_group(lr=0.1, maximize=True)), ValueError, "maximize=True"),
        (lambda: pb.from_torch(one_group(torch.optim.NAdam)), TypeError, "got NAdam"),
        (lambda: pb.from_torch(pb.SGD(0.1)), TypeError, "one of torch.optim.SGD, .*Adagrad, got SGD"),
        (
            lambda: pb.from_torch(one_group(torch.optim.Adam, eps=0.0)),
            ValueError,
            "eps must be finite and > 0",
        ),
        (
            lambda: pb.from_torch(two_groups(torch.optim.SGD, lr=0.1, second={"lr": 0.2})),
            ValueError,
            "parameter groups have lr = 0.1, 0.2: give w0 too",
        ),
        (
            lambda: pb.from_torch(two_groups(torch.optim.Adam, second={"amsgrad": True})),
            ValueError,
            "parameter groups have amsgrad = False, True: it must be the same in all",
        ),
        (
            lambda: pb.State.from_torch(one_group(lr=0.1), {"a": torch.ones(3)}),
            ValueError,
            r"w0 has the shapes \[\[3\]\] but the parameters of optimizer have \[\[2\]\]",
        ),
        (lambda: pb.from_torch(one_group(lr=0.1), rate=0.1), TypeError, "rate"),
    ],
)
def test_what_has_no_counterpart_is_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_mixture_of_parameters_and_others_is_an_error():
    optimizer = one_group(lr=0.1)
    (p,) = optimizer.param_groups[0]["params"]
    with pytest.raises(ValueError, match="leaf 1 of w0 is no parameter of optimizer but leaf 0 is"):
        pb.State.from_torch(optimizer, [p, torch.ones(2)])


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (lambda p: torch.optim.Adam([p]), "state is of optimizer 'sgd' but optimizer is 'adam'"),
        (lambda p: torch.optim.SGD([p], lr=0.1), "state holds 1 buffers a parameter but this sgd keeps 0"),
    ],
)
def test_a_state_goes_back_only_into_its_kind(optimizer, text):
    p = torch.nn.Parameter(torch.ones(2))
    before = p.detach().clone()
    state = pb.State.from_torch(torch.optim.SGD([p], lr=0.1, momentum=0.5), p)
    with pytest.raises(ValueError, match=text):
        state.to_torch(optimizer(p))
    assert torch.equal(p, before)


@pytest.mark.gpu
def test_buffers_and_counts_on_cuda():
    p = torch.nn.Parameter(torch.ones(2, device="cuda"))
    adam = torch.optim.Adam([p], lr=0.1)
    p.square().sum().backward()
    adam.step()
    _, state = pb.unroll(
        lambda w: w.square().sum(),
        steps=2,
        optimizer=pb.from_torch(adam),
        state=pb.State.from_torch(adam, p),
        return_state=True,
    )
    state.to_torch(adam)
    adam.step()
    assert int(adam.state[p]["step"]) == 4
