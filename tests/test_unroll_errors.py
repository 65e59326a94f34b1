"""Every argument of `unroll` that can be wrong: the error names it, its value and the remedy."""

import pytest
import torch

from pybilevel import explain
from pybilevel.engine import fused
from pybilevel.engine.recorder import Recorder
from pybilevel.engine.unroll import unroll
from pybilevel.errors import BackendError
from pybilevel.methods import Forward, Implicit, Reverse, Spectral
from pybilevel.optimizers import SGD
from pybilevel.problems import ModuleLoss, SoftmaxRegression
from pybilevel.schedules import Periodic, Revolve, StoreAll

X, Y = torch.randn(2, 5, 4), torch.arange(10).reshape(2, 5) % 3
PROBLEM = SoftmaxRegression(X, Y)
W = torch.randn(4)


def quadratic(w):
    return w.square().sum()


def run(inner=quadratic, w0=W, hparams=None, **kwargs):
    return unroll(inner, w0, hparams, **({"steps": 3, "optimizer": SGD(0.1)} | kwargs))


def state(**kwargs):
    return run(**kwargs, return_state=True)[1]


NET = torch.nn.BatchNorm1d(1)

CASES = {
    # steps
    "steps negative": (lambda: run(steps=-1), ValueError, "steps must be >= 0, got -1"),
    "steps float": (lambda: run(steps=3.0), TypeError, "steps must be an int >= 0, got 3.0"),
    "steps bool": (lambda: run(steps=True), TypeError, "steps must be an int >= 0, got True"),
    # inner and hparams
    "inner no callable": (lambda: run(3), TypeError, "inner must be a problem .* got 3"),
    "hparams with a problem": (
        lambda: run(PROBLEM, None, W),
        ValueError,
        "a fused problem holds its own tensors",
    ),
    "loss without its batch": (
        lambda: run(lambda w: w.sum(), batches=torch.ones(3, 2)),
        TypeError,
        r"called as loss\(w, batch\), but takes \(w\).*a batch last",
    ),
    "loss of a ModuleLoss": (
        lambda: run(ModuleLoss(NET, lambda model: W.sum()), batches=torch.ones(3, 2)),
        TypeError,
        r"called as loss\(model, batch\), but takes \(model\)",
    ),
    "a module": (lambda: run(NET, batches=torch.ones(3, 2)), TypeError, r"needs a loss, pb.ModuleLoss"),
    "loss a vector": (
        lambda: run(lambda w: w),
        ValueError,
        r"must return one floating number, got shape \[4\]",
    ),
    "loss no tensor": (lambda: run(lambda w: 1.0), TypeError, "inner must return a tensor, got float"),
    "loss mutates": (
        lambda: run(lambda w: NET(w[:, None]).square().sum()),
        ValueError,
        "changes .* in place .*BatchNorm.*use pb.ModuleLoss",
    ),
    # w0
    "w0 missing": (lambda: run(w0=None), ValueError, "w0 is None: a callable inner loss needs initial"),
    "w0 int": (lambda: run(w0=torch.arange(4)), TypeError, "w0 must be floating point, got torch.int64"),
    "w0 no tensor": (lambda: run(w0=[1.0]), TypeError, "leaf 0 of w0 must be a tensor, got float"),
    "w0 empty": (lambda: run(w0=[]), ValueError, "w0 holds no tensors"),
    "w0 mixed": (lambda: run(w0=[W, W.double()]), TypeError, "leaf 1 of w0 is torch.float64 but leaf 0 is"),
    "w0 shape": (
        lambda: run(PROBLEM, torch.zeros(2, 4, 3)),
        ValueError,
        r"w0 has shape \[2, 4, 3\] but inner needs \[\*B, d\+1, c\].* = \[2, 5, 3\]",
    ),
    "w0 dtype": (
        lambda: run(PROBLEM, torch.zeros(2, 5, 3).double()),
        TypeError,
        "w0 is torch.float64 but x is",
    ),
    "w0 device": (
        lambda: run(PROBLEM, torch.zeros(2, 5, 3, device="meta")),
        ValueError,
        "w0 is on meta but x is on",
    ),
    # optimizer
    "optimizer of torch": (
        lambda: run(optimizer=torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)),
        TypeError,
        r"optimizer is a torch.optim.SGD.*pb.from_torch\(optimizer\).*pb.SGD\(lr=0.1, momentum=0.9\)",
    ),
    "optimizer class": (
        lambda: run(optimizer=SGD),
        TypeError,
        "optimizer must be an instance such as pb.SGD",
    ),
    "optimizer number": (lambda: run(optimizer=0.1), TypeError, "optimizer must be an instance .* got 0.1"),
    "lr length": (
        lambda: run(optimizer=SGD(torch.ones(4))),
        ValueError,
        "lr has length 4 but there are 3 steps",
    ),
    "lr tasks": (
        lambda: run(PROBLEM, None, optimizer=SGD(torch.ones(3, 1))),
        ValueError,
        r"lr has shape \[3, 1\].*\[2, 1\] or \[2, 3\]",
    ),
    "lr structure": (lambda: run(optimizer=SGD({"a": 0.1})), ValueError, "lr has the structure"),
    "lr device": (lambda: run(optimizer=SGD(torch.ones(3, device="meta"))), ValueError, "lr is on meta"),
    # method
    "method string": (lambda: run(method="reverse"), TypeError, "method must be a method such as pb.Reverse"),
    "method class": (lambda: run(method=Reverse), TypeError, "method must be a method such as pb.Reverse"),
    "truncate zero": (lambda: Reverse(truncate=0), ValueError, "truncate must be >= 1, got 0"),
    "truncate float": (lambda: Reverse(truncate=1.5), TypeError, "truncate must be an int or None, got 1.5"),
    "solver": (lambda: Implicit(solver="qr"), ValueError, "solver must be one of cg, .* got 'qr'"),
    "max_iter": (lambda: Implicit(max_iter=0), ValueError, "max_iter must be >= 1, got 0"),
    "max_iter float": (lambda: Implicit(max_iter=1.5), TypeError, "max_iter must be an int, got 1.5"),
    "tol": (lambda: Implicit(tol=-1.0), ValueError, "tol must be finite and >= 0, got -1"),
    "tol tensor": (lambda: Implicit(tol=torch.ones(())), TypeError, "tol must be a number"),
    "damping": (lambda: Implicit(damping=float("nan")), ValueError, "damping must be finite and >= 0"),
    # memory
    "memory string": (lambda: run(memory="lots"), ValueError, "memory must be \"auto\".* got 'lots'"),
    "memory negative": (lambda: run(memory=-1), ValueError, "memory must be .* got -1"),
    "memory float": (lambda: run(memory=1.5), TypeError, "memory must be .* got 1.5"),
    "memory class": (
        lambda: run(memory=StoreAll),
        TypeError,
        "memory is the class StoreAll: pass an instance",
    ),
    "memory too small": (lambda: run(memory=10), ValueError, "too small for 3 steps.*at least"),
    "slots": (lambda: run(memory=Revolve(0)), ValueError, "checkpoints must be >= 1"),
    "every": (lambda: run(memory=Periodic(0)), ValueError, "every must be >= 1"),
    # state
    "state no state": (lambda: run(w0=None, state={}), TypeError, "state must be a pb.State, got dict"),
    "state and w0": (lambda: run(state=state()), ValueError, "both w0 and state are given"),
    "state optimizer": (
        lambda: run(w0=None, state=state(), optimizer=SGD(0.1, momentum=0.9)),
        ValueError,
        "state holds 0 buffers a parameter but this sgd keeps 1",
    ),
    "state dict": (lambda: state().load_state_dict({"w": W}), ValueError, "lacks buffers, optimizer, step"),
    "state shapes": (
        lambda: state().load_state_dict(state(w0=torch.zeros(5)).state_dict()),
        ValueError,
        r"state dict has shapes \[\[5\]\], this state \[\[4\]\]",
    ),
    # words
    "backend": (
        lambda: run(backend="cuda"),
        ValueError,
        "backend must be one of auto, fused, generic, got 'cuda'",
    ),
    "randomness": (
        lambda: run(randomness="no"),
        ValueError,
        "randomness must be one of different, same, error",
    ),
    # later parts
    "forward fused": (
        lambda: run(PROBLEM, None, method=Forward(), backend="fused"),
        BackendError,
        "method 'forward' has no native kernel",
    ),
    "forward memory": (
        lambda: run(w0=torch.zeros(40, requires_grad=True), method=Forward(), memory=2000),
        ValueError,
        r"memory is .* P = 40 tangents.*needs .* use pb.Reverse\(\)",
    ),
    "callback": (
        lambda: run(callback=3),
        TypeError,
        "callback must be a function of pb.InnerStep or a pb.Recorder",
    ),
    "callback class": (lambda: run(callback=Recorder), TypeError, r"a pb.Recorder\(\), got <class"),
    "implicit batches": (
        lambda: run(lambda w, b: (w * b).sum(), batches=torch.ones(3, 4), method=Implicit()),
        ValueError,
        "batches is given, but .* one problem: train with batches .* steps=0",
    ),
    "implicit decay": (
        lambda: run(optimizer=SGD(0.1, weight_decay=0.1), method=Implicit()),
        ValueError,
        "optimizer has a weight_decay.*put the penalty into inner .*fixed_point",
    ),
    "implicit no step": (
        lambda: run(steps=0, optimizer=SGD(torch.ones(0)), method=Implicit("fixed_point")),
        ValueError,
        "lr has no value for any of 0 steps",
    ),
    "implicit random": (
        lambda: run(lambda w: torch.nn.functional.dropout(w).sum(), method=Implicit()),
        ValueError,
        r"draws random numbers .* no problem .* call .eval\(\)",
    ),
    "implicit fused": (
        lambda: run(PROBLEM, None, method=Implicit(), backend="fused"),
        BackendError,
        "method 'implicit' has no native kernel",
    ),
    "spectral": (
        lambda: run(method=Spectral()),
        ValueError,
        "pb.Spectral.* needs inner to be a pb.LeastSquares",
    ),
    "explain": (lambda: explain(print), TypeError, "explain knows pb.unroll"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_says_what_and_what_to_do(case):
    call, error, text = CASES[case]
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("verb", [run, lambda **kwargs: explain(unroll, quadratic, W, steps=3, **kwargs)])
def test_fused_lists_every_reason_and_the_remedy(verb):
    with pytest.raises(BackendError) as caught:
        verb(backend="fused", optimizer=SGD(0.1))
    assert caught.value.backend == "fused" and len(caught.value.reasons) >= 1
    for part in (*caught.value.reasons, 'backend="fused" cannot run this call', "Remedy: "):
        assert part in str(caught.value)


def test_every_reason_of_the_fused_engine_is_listed(monkeypatch):
    monkeypatch.setattr(fused, "reasons", lambda call: ["dtype int32", "d = 9000 exceeds 4096"])
    with pytest.raises(BackendError) as caught:
        run(PROBLEM, None, backend="fused")
    assert "  - dtype int32\n  - d = 9000 exceeds 4096\n" in str(caught.value)


def test_inference_mode_says_what_to_use():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use no_grad"):
        run()
