"""torch.compile and the package: it is not imported before somebody compiles, and does not look into the engine."""

import subprocess
import sys

import pytest
import torch
from generic_laws import gradients, leaf

import pybilevel as pb

ALONE = """
import sys, torch, pybilevel as pb
w0, late = torch.ones(3, requires_grad=True), {}
def loss(w):
    if LAZY:  # compiled when it is first called
        late.setdefault("cos", torch.compile(torch.cos, backend="eager"))
    return (late["cos"](w) if LAZY else w.cos()).sum()
def same(x, y):
    return torch.equal(*(torch.autograd.grad(z.sum(), w0)[0] for z in (x, y)))
options = dict(steps=5, optimizer=pb.SGD(0.1))
w = pb.unroll(loss, w0, **options)
assert same(w, pb.unroll(lambda w: w.cos().sum(), w0, **options))
if not LAZY:  # budgets and forecasts count operations
    pb.unroll(loss, w0, memory=3000, **options).sum().backward()
    assert pb.explain(pb.unroll, loss, w0, memory=3000, **options).peak_memory <= 3000
assert ("torch._dynamo" in sys.modules) == LAZY
"""


@pytest.mark.parametrize("lazy", [False, True])
def test_the_compiler_is_imported_by_whoever_compiles(lazy):
    subprocess.run([sys.executable, "-c", f"LAZY = {lazy}\n{ALONE}"], check=True)


@pytest.mark.parametrize(
    "method", [pb.Reverse(), pb.Forward(), pb.Implicit(damping=1.0)], ids=lambda m: m.name
)
def test_compiled_code_calls_the_engine_as_it_is(method):
    torch._dynamo.reset()
    seen, w0, h = [], leaf(3), leaf(3)

    def loss(w, h):
        seen.append(torch.compiler.is_compiling())
        return ((w - h) ** 2).sum() + (w * h).cos().sum()

    def function(w0, h):
        return pb.unroll(loss, w0 * 1.0, h * 2.0, steps=4, optimizer=pb.SGD(0.1), method=method) * 3.0

    compiled = torch.compile(function, backend="eager")
    for _ in range(2):
        ours, plain = compiled(w0, h), function(w0, h)
        assert torch.equal(ours, plain)
        found, expected = (gradients(w, {"h": h})["h"] for w in (ours, plain))
        assert torch.equal(found, expected)
    assert not any(seen)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run"):
        torch.compile(function, backend="eager", fullgraph=True)(w0, h)
    torch._dynamo.reset()
