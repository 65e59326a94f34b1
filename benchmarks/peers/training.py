"""Hypergradients through the training of a network: the loop that users write, the libraries they take, and ours."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Results = dict[str, Tensor]  # "value", and the hypergradients by name


class Budgets(NamedTuple):
    """What `memory=` may be given.

    Attributes:
        stated: a fraction of what the plain loop holds.
        eager: as much as the plain loop was measured to hold, rounded down.
    """

    stated: str
    eager: str


Run = Callable[["Problem", Budgets], Results]


class Problem(NamedTuple):
    """A network to be trained by T steps of gradient descent, all parameters, on all training data each step."""

    net: nn.Module
    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    weights: Tensor  # [n], of the examples
    l2: Tensor
    lr: float
    steps: int

    def inner(self, logits: Tensor, parameters: list[Tensor]) -> Tensor:
        """The training loss."""
        each = F.cross_entropy(logits, self.y, reduction="none")
        penalty = sum((p.square().sum() for p in parameters), torch.zeros((), dtype=each.dtype))
        return (self.weights * each).mean() + 0.5 * self.l2 * penalty

    def finish(self, logits: Tensor) -> Results:
        """The validation loss and its gradients, from the trained network's logits."""
        value = F.cross_entropy(logits, self.y_val)
        weights, l2 = torch.autograd.grad(value, (self.weights, self.l2))
        return {"value": value.detach(), "weights": weights, "l2": l2}


def eager(problem: Problem, budgets: Budgets) -> Results:
    """`create_graph=True` in a loop."""
    net = problem.net
    w = dict(net.named_parameters())
    for _ in range(problem.steps):
        loss = problem.inner(functional_call(net, w, (problem.x,)), list(w.values()))
        gradient = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {name: p - problem.lr * g for (name, p), g in zip(w.items(), gradient, strict=True)}
    return problem.finish(functional_call(net, w, (problem.x_val,)))


def higher(problem: Problem, budgets: Budgets) -> Results:
    """As its tutorials do."""
    import higher as library

    sgd = torch.optim.SGD(problem.net.parameters(), lr=problem.lr)
    with library.innerloop_ctx(problem.net, sgd) as (model, optimizer):
        for _ in range(problem.steps):
            optimizer.step(problem.inner(model(problem.x), list(model.parameters())))
        return problem.finish(model(problem.x_val))


def torchopt(problem: Problem, budgets: Budgets) -> Results:
    """As its tutorials do."""
    import torchopt as library

    net = copy.deepcopy(problem.net)
    optimizer = library.MetaSGD(net, lr=problem.lr)
    for _ in range(problem.steps):
        optimizer.step(problem.inner(net(problem.x), list(net.parameters())))
    return problem.finish(net(problem.x_val))


def ours(memory: Callable[[Budgets], Any]) -> Run:
    """`pb.unroll` with `memory=memory(budgets)`."""

    def run(problem: Problem, budgets: Budgets) -> Results:
        import pybilevel as pb

        net = problem.net

        def loss(w: dict[str, Tensor]) -> Tensor:
            return problem.inner(functional_call(net, w, (problem.x,)), list(w.values()))

        w0 = {name: p.detach() for name, p in net.named_parameters()}
        w = pb.unroll(loss, w0, steps=problem.steps, optimizer=pb.SGD(problem.lr), memory=memory(budgets))
        return problem.finish(functional_call(net, w, (problem.x_val,)))

    return run


def _store_all(budgets: Budgets) -> Any:
    import pybilevel as pb

    return pb.StoreAll()


CONTENDERS: dict[str, Run] = {
    "pybilevel, budget": ours(lambda budgets: budgets.stated),
    "pybilevel, auto": ours(lambda budgets: "auto"),
    "pybilevel, StoreAll": ours(_store_all),
    "pybilevel, graphs kept": ours(lambda budgets: budgets.eager),
    "eager": eager,
    "higher": higher,
    "torchopt": torchopt,
}


def missing(name: str) -> str | None:
    """Why a contender cannot run; None if it may."""
    return (
        "not installed" if name in ("higher", "torchopt") and importlib.util.find_spec(name) is None else None
    )
