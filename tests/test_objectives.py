"""The ML objective: that the fused and the plain way agree, and what they say to wrong arguments."""

import pytest
import torch
from small_problems import leaf, tasks
from tolerance import assert_all_match, assert_matches
from torch import nn

import pybilevel as pb

SGD = pb.SGD(0.2, momentum=0.5)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2), (0,)])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("backend", ["auto", "fused", "generic"])
def test_ml_objective_is_a_plain_loop(lead, loss, backend):
    """Written out once more, with torch.nn.functional: no class of the package but SGD's call."""
    x, y, query, query_y = tasks(*lead)
    l2, lr = (
        torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
        leaf(4).detach().abs().requires_grad_(),
    )
    found = pb.ml_objective(
        x, y, query, query_y, steps=4, optimizer=pb.SGD(lr), loss=loss, l2=l2, num_classes=3, backend=backend
    )

    def criterion(z, y):
        if loss == "cross_entropy":
            return nn.functional.cross_entropy(z, y)
        return 0.5 * (z - nn.functional.one_hot(y, 3)).square().sum(-1).mean()

    losses, logits = [], []
    for s, t, q, u in zip(
        x.reshape(-1, 6, 4), y.reshape(-1, 6), query.reshape(-1, 5, 4), query_y.reshape(-1, 5), strict=True
    ):
        w = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for step in range(4):
            value = criterion(s @ w + b, t) + l2 / 2 * w.square().sum()
            gradients = torch.autograd.grad(value, (w, b), create_graph=True)
            w, b = (p - lr[step] * g for p, g in zip((w, b), gradients, strict=True))
        logits.append(q @ w + b)
        losses.append(criterion(logits[-1], u))
    assert found.loss.shape == lead and found.logits.shape == (*lead, 5, 3)
    if not losses:
        assert found.loss.numel() == found.logits.numel() == 0
        assert not torch.autograd.grad(found.loss.sum(), l2)[0].any()
        return
    assert_matches(found.loss.flatten(), torch.stack(losses))
    assert_matches(found.logits.reshape(-1, 5, 3), torch.stack(logits))
    inputs = [x, query, l2, lr]
    assert_all_match(
        torch.autograd.grad(found.loss.sum() + found.logits.sin().sum(), inputs),
        torch.autograd.grad(sum(losses) + sum(z.sin().sum() for z in logits), inputs),
    )


def test_the_number_of_classes_is_read_from_both_sets():
    x, _, query, _ = tasks(2)
    support_y, query_y = torch.zeros(2, 6, dtype=torch.long), torch.full((2, 5), 3)
    assert pb.ml_objective(x, support_y, query, query_y, steps=2, optimizer=SGD).logits.shape == (2, 5, 4)
    assert pb.ml_objective(
        x, query_y[:, :1].expand(2, 6), query, support_y[:, :5], steps=2, optimizer=SGD
    ).logits.shape == (2, 5, 4)


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_query_weights_are_divided_by_the_number_of_queries(backend):
    x, y, query, query_y = tasks(2)
    weights = torch.rand(2, 5, dtype=torch.float64)
    found = pb.ml_objective(
        x, y, query, query_y, steps=3, optimizer=SGD, query_weights=weights, num_classes=3, backend=backend
    )
    rows = nn.functional.cross_entropy(found.logits.mT, query_y, reduction="none")
    assert_matches(found.loss.detach(), (weights * rows).sum(-1).detach() / 5)


@pytest.mark.parametrize("backend", ["fused", "generic"])
def test_without_steps_the_model_is_w0(backend):
    x, y, query, query_y = tasks(2)
    w0, lr = leaf(2, 5, 3), torch.tensor(0.1, requires_grad=True)
    found = pb.ml_objective(
        x, y, query, query_y, steps=0, optimizer=pb.SGD(lr), w0=w0, num_classes=3, backend=backend
    )
    logits = query @ w0[:, :4] + w0[:, 4:]
    expected = nn.functional.cross_entropy(logits.mT, query_y, reduction="none").mean(-1)
    assert_matches(found.loss.detach(), expected.detach())
    x_bar, lr_bar, *rest = torch.autograd.grad(found.loss.sum(), [x, lr, query, w0])
    assert not x_bar.any() and not lr_bar.any()
    assert_all_match(rest, torch.autograd.grad(expected.sum(), [query, w0]))


def test_learning_an_encoder_and_a_step_size():
    """The loop of hyper-representation, in small: the outer loss goes down."""
    torch.manual_seed(0)
    encoder, log_lr = nn.Linear(8, 4), torch.tensor(-2.0, requires_grad=True)
    outer = torch.optim.Adam([*encoder.parameters(), log_lr], lr=0.05)
    centers = torch.randn(5, 8)
    losses = []
    for _ in range(25):
        y = torch.arange(10).expand(8, 10) % 5
        noise = torch.randn(2, 8, 10, 8)
        support, query = (encoder(centers[y] + part) for part in noise)
        loss = pb.ml_objective(
            support, y, query, y, steps=5, optimizer=pb.SGD(log_lr.exp()), num_classes=5
        ).loss.mean()
        outer.zero_grad()
        loss.backward()
        outer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and log_lr != -2.0


X, Y, Q, V = tasks(2)


def ml(**options):
    given = {"support": X, "support_y": Y, "query": Q, "query_y": V, "steps": 2, "optimizer": SGD}
    return pb.ml_objective(**(given | options))


ML_ERRORS = {
    "loss": (
        {"loss": "hinge"},
        ValueError,
        r'loss must be "cross_entropy" or "squared_error", got \'hinge\'',
    ),
    "query ndim": (
        {"query": Q[0]},
        ValueError,
        r"query must be \[\*B, m, d\] with the tasks of support \[2, 6, 4\]",
    ),
    "query tasks": ({"query": Q[:1]}, ValueError, r"with the tasks of support \[2, 6, 4\], got \[1, 5, 4\]"),
    "query features": ({"query": Q[..., :3]}, ValueError, r"query has 3 features but support has 4"),
    "no query": (
        {"query": Q[:, :0], "query_y": V[:, :0]},
        ValueError,
        r"query must be \[\*B, examples, features\] with at least one of each, got \[2, 0, 4\]",
    ),
    "no support": (
        {"support": X[:, :0], "support_y": Y[:, :0]},
        ValueError,
        r"support must be .* at least one of each, got \[2, 0, 4\]",
    ),
    "no tensor": ({"query": [1.0]}, TypeError, "query must be a tensor, got list"),
    "no labels": ({"query_y": [1]}, TypeError, "query_y must be a tensor, got list"),
    "integer features": ({"support": X.long()}, TypeError, "support must be floating point"),
    "query dtype": (
        {"query": Q.float()},
        TypeError,
        r"query is torch.float32 but support is torch.float64",
    ),
    "support labels": (
        {"support_y": Y[:, :3]},
        ValueError,
        r"support_y must be classes \[2, 6\] or targets \[2, 6, 'c'\], got \[2, 3\]",
    ),
    "query labels": (
        {"query_y": V[:, :3]},
        ValueError,
        r"query_y must be classes \[2, 5\] or targets \[2, 5, 'c'\], got \[2, 3\]",
    ),
    "label range": ({"num_classes": 2}, ValueError, r"y holds the label 2, outside \[0, 2\)"),
    "weights": (
        {"weights": torch.ones(2, 5).double()},
        ValueError,
        r"weights must be \[2, 6\], one an example of support, got \[2, 5\]",
    ),
    "negative weights": (
        {"weights": -torch.ones(2, 6).double()},
        ValueError,
        "weights must be finite and >= 0, got -1",
    ),
    "query weights": (
        {"query_weights": torch.ones(2, 6).double()},
        ValueError,
        r"query_weights must be \[2, 5\], one an example of query",
    ),
    "l2": ({"l2": -0.1}, ValueError, "l2 must be finite and >= 0, got -0.1"),
    "l2 shape": (
        {"l2": torch.ones(3).double()},
        ValueError,
        r"l2 must be \(\) or \[\*B\] = \[2\], got \[3\]",
    ),
    "w0": (
        {"w0": torch.zeros(2, 4, 3).double()},
        ValueError,
        r"w0 has shape \[2, 4, 3\] but inner .*\[2, 5, 3\]",
    ),
    "steps": ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
    "lr": (
        {"optimizer": pb.SGD(torch.ones(5).double())},
        ValueError,
        "lr has length 5 but there are 2 steps",
    ),
    "memory": ({"memory": 10}, ValueError, "a budget of 10 bytes is too small for 2 steps.*Give memory >= "),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of auto, fused, generic, got 'cuda'"),
}


@pytest.mark.parametrize("case", ML_ERRORS)
def test_ml_objective_says_what_is_wrong(case):
    options, error, text = ML_ERRORS[case]
    with pytest.raises(error, match=text):
        ml(**options)
