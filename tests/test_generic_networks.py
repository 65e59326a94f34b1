"""Networks that people train: hypergradients equal to those of the plain unroll, under every schedule."""

import pytest
import torch
import torch.nn.functional as F
from generic_laws import STEPS, assert_law, generic, leaf
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from pybilevel import explain
from pybilevel.engine.unroll import unroll
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss
from pybilevel.schedules import Revolve, StoreAll

PLANS = [StoreAll(), Revolve(3), "budget"]


def convolutional(track_running_stats=True):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, track_running_stats=track_running_stats),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, track_running_stats=track_running_stats),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).double()


class LSTM(nn.Module):
    """One layer from its own cell; the last hidden state is classified."""

    def __init__(self):
        super().__init__()
        self.gates, self.head = nn.Linear(3 + 5, 4 * 5), nn.Linear(5, 3)

    def forward(self, x):  # [b, time, 3]
        h = c = x.new_zeros(x.shape[0], 5)
        for now in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([now, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class Transformer(nn.Module):
    """A pre-norm block with two heads, and a classifier of its mean."""

    def __init__(self):
        super().__init__()
        self.norm, self.mixed, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 6)
        self.mlp = nn.Sequential(
            nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 6)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):  # [b, time, 6]
        q, k, v = self.mixed(self.norm(x)).chunk(3, -1)
        split = [z.unflatten(-1, (2, 3)).transpose(1, 2) for z in (q, k, v)]
        mixed = F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return self.head((x + self.mlp(x)).mean(1))


def mathematically(net):
    """The net with the attention path that can be differentiated twice."""

    def call(x):
        with sdpa_kernel(SDPBackend.MATH):
            return net(x)

    return call


def data(*shape):
    return torch.randn(STEPS, 4, *shape).double(), torch.randint(3, (STEPS, 4))


def weighted(model, h, batch):
    """Learned label smoothing and l2: what hyperparameter optimization differentiates in."""
    x, y = batch
    log_p = F.log_softmax(model(x), -1)
    return -(1 - h["smooth"]) * log_p.gather(1, y[:, None]).mean() - h["smooth"] * log_p.mean()


def check(inner, plain, batches, memory):
    w0, h = inner.parameters(), {"smooth": torch.tensor(0.1).double().requires_grad_()}
    lr, momentum = leaf(STEPS, low=0.1), torch.tensor(0.5).double().requires_grad_()
    inputs = {**w0, **h, "lr": lr, "momentum": momentum}
    settings = {"lr": lr, "momentum": momentum}
    if memory == "budget":  # of bytes, enough for two of the states
        options = {"steps": STEPS, "optimizer": SGD(**settings), "batches": batches}
        memory = explain(unroll, inner, w0, h, memory=Revolve(2), **options).peak_memory
        assert explain(unroll, inner, w0, h, memory=memory, **options).recomputation > 1
    assert_law(inner, w0, h, inputs=inputs, batches=batches, plain=plain, memory=memory, **settings)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_a_convolutional_network_with_batch_norm_and_dropout(memory, one_thread):
    net, stateless = convolutional(), convolutional(track_running_stats=False)

    def plain(w, h, batch):
        return weighted(lambda x: functional_call(stateless, w, (x,)), h, batch)

    check(ModuleLoss(net, weighted), plain, data(2, 8, 8), memory)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_an_lstm_with_its_own_cell(memory, one_thread):
    net = LSTM().double()

    def plain(w, h, batch):
        return weighted(lambda x: functional_call(net, w, (x,)), h, batch)

    check(ModuleLoss(net, weighted), plain, data(5, 3), memory)


@pytest.mark.parametrize("memory", PLANS, ids=str)
def test_a_transformer_block_on_the_math_path(memory, one_thread):
    net = Transformer().double()

    def loss(model, h, batch):
        return weighted(mathematically(model), h, batch)

    def plain(w, h, batch):
        return loss(lambda x: functional_call(net, w, (x,)), h, batch)

    check(ModuleLoss(net, loss), plain, data(5, 6), memory)


NETS = {
    "convolutional": (convolutional, (2, 8, 8)),
    "lstm": (LSTM, (5, 3)),
    "transformer": (Transformer, (5, 6)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("policy", ["batch", "carry"])
def test_graphs_kept_from_the_forward_half_give_the_same_bits(name, policy, one_thread):
    make, shape = NETS[name]
    torch.manual_seed(3)
    batches = data(*shape)
    inner = ModuleLoss(
        make().double(), lambda model, h, b: weighted(mathematically(model), h, b), buffers=policy
    )
    w0, h = inner.parameters(), {"smooth": torch.tensor(0.1).double().requires_grad_()}
    found = []
    for memory in ("auto", StoreAll(), Revolve(2)):
        torch.manual_seed(0)
        w = generic(inner, w0, h, batches=batches, lr=0.1, momentum=0.5, memory=memory)
        outer = sum(x.sin().sum() for x in w.values())
        found.append(
            [*w.values(), *torch.autograd.grad(outer, [*w0.values(), h["smooth"]], retain_graph=True)]
        )
        # a second backward has no graphs left and runs the plan
        found.append([*w.values(), *torch.autograd.grad(outer, [*w0.values(), h["smooth"]])])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_attention_without_a_second_backward_says_what_to_do(one_thread):
    net = Transformer().double()
    inner = ModuleLoss(net, weighted)
    w = generic(inner, inner.parameters(), {"smooth": torch.tensor(0.1).double()}, batches=data(5, 6), lr=0.1)
    with pytest.raises(RuntimeError, match=r"math backend of torch.nn.attention.sdpa_kernel"):
        sum(x.sum() for x in w.values()).backward()


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_recurrent_net_without_a_rule_for_vmap_says_what_to_do(kind, one_thread):
    """As tasks; without them it runs. `LSTM` above, by its formulas, runs both ways."""
    x = torch.randn(2, 4, 5, 3)
    inner = ModuleLoss(kind(3, 5, batch_first=True), lambda model, h: model(h)[0].square().mean())
    options = {"steps": 2, "optimizer": SGD(0.1)}
    with pytest.raises(RuntimeError, match=r"torch.vmap, which in_dims needs.*GRU, LSTM, RNN.*for each task"):
        unroll(inner, inner.parameters(), x, in_dims=(None, 0), **options)
    unroll(inner, inner.parameters(), x[0], **options)
    inner = ModuleLoss(LSTM(), lambda model, h: model(h).square().mean())
    w0, found = inner.parameters(), []
    for one in (x, x[:1], x[1:]):
        w = unroll(inner, w0, one, in_dims=(None, 0), **options)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in w.values()), list(w0.values())))
    for whole, first, second in zip(*found, strict=True):
        assert torch.allclose(whole, first + second, rtol=1e-4, atol=1e-6)
