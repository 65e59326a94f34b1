"""`precision`: refused with every reason where no kernel rounds, passed on where one does, and explained."""

import pytest
import torch

import pybilevel as pb
from pybilevel.engine.arguments import normalise
from pybilevel.engine.layout import lay_out
from pybilevel.engine.precision import PRECISIONS, describe

X, Q = (torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) for rows in (6, 5))
Y, V = torch.arange(6) % 3, torch.arange(5) % 3
RULE = {"steps": 3, "optimizer": pb.SGD(0.1)}


def inner(x=X):
    return pb.SoftmaxRegression(x, Y, num_classes=3)


OUTER = pb.SoftmaxRegression(Q, V, num_classes=3)
VERBS = {
    "unroll": lambda **options: pb.unroll(inner(), **RULE, **options),
    "ml_objective": lambda **options: pb.ml_objective(X, Y, Q, V, num_classes=3, **RULE, **options),
    "ho_objective": lambda **options: pb.ho_objective(inner(), OUTER, **RULE, **options),
    "hypergradient": lambda **options: pb.hypergradient(
        inner(X.clone().requires_grad_()), OUTER, **RULE, **options
    ),
    "explain unroll": lambda **options: pb.explain(pb.unroll, inner(), **RULE, **options),
    "explain ml_objective": lambda **options: pb.explain(
        pb.ml_objective, X, Y, Q, V, num_classes=3, **RULE, **options
    ),
    "explain hypergradient": lambda **options: pb.explain(
        pb.hypergradient, inner(), OUTER, **RULE, **options
    ),
}


@pytest.mark.parametrize("precision", ["3xtf32", "tf32"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_cpu_does_not_round_products(verb: str, precision: str) -> None:
    with pytest.raises(ValueError, match=rf"precision='{precision}' .*\n.*device cpu .*\n.*leave precision="):
        VERBS[verb](precision=precision)


@pytest.mark.parametrize("verb", VERBS)
def test_the_default_is_fp32_and_others_are_unknown(verb: str) -> None:
    VERBS[verb](precision="fp32")
    for unknown in ("bf16", None, 32):
        with pytest.raises(ValueError, match="precision must be one of fp32, 3xtf32, tf32, got"):
            VERBS[verb](precision=unknown)


def refused(found, **options) -> str:
    with pytest.raises(ValueError, match="Remedy") as error:
        normalise(found, **RULE, precision="tf32", **options)
    return str(error.value)


def test_every_reason_is_named() -> None:
    assert "dtype torch.float64 (need float32)" in refused(inner(X.double()))
    assert 'backend="generic" was asked for' in refused(inner(), backend="generic")
    assert "method 'forward' has no native kernel" in refused(inner(), method=pb.Forward())
    network = pb.MLP(X, Y, sizes=(4, 5, 3))
    assert "inner is a MLP (need a linear problem)" in refused(network, w0=pb.MLP.init((4, 5, 3)))
    generic = refused(lambda w: w.square().sum(), w0=torch.ones(2))
    assert "inner is a function, not a fused problem" in generic and "device" not in generic


def test_the_operator_gets_it_and_refuses_it_on_a_cpu() -> None:
    layout = lay_out(normalise(inner(), **RULE), None)
    arguments = layout.arguments(layout.itinerary())
    assert arguments[-1] == "fp32"
    *most, _ = arguments
    w, again = (torch.ops.pybilevel.linear_unroll(*given)[0] for given in (arguments, most))
    assert torch.equal(w, again)
    with pytest.raises(
        ValueError, match="precision is 'tf32', which needs float32 on CUDA; x is Float on cpu"
    ):
        torch.ops.pybilevel.linear_unroll(*most, "tf32")
    with pytest.raises(ValueError, match="precision"):
        torch.ops.pybilevel.linear_unroll(*most, "tf64")


def test_explain_says_what_rounds() -> None:
    single, double = (pb.explain(pb.unroll, inner(x), **RULE) for x in (X, X.double()))
    assert single.precision == "fp32, rounding 6e-08" and double.precision == "fp64, rounding 1e-16"
    assert "precision    fp32, rounding 6e-08" in str(single)
    assert describe("tf32", "dual", torch.float32).startswith("fp32: tf32 is for")
    rounded = [describe(name, "primal", torch.float32) for name in PRECISIONS[1:]]
    assert rounded[0].startswith("3xtf32, operands of X W and of its transpose to 2e-07")
    assert rounded[1].startswith("tf32, operands of X W and of its transpose to 0.0005")
    assert pb.explain(pb.unroll, inner(), backend="generic", **RULE).precision is None
