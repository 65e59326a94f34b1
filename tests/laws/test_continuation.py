"""Going on: unroll(a + b) = unroll(b, state=unroll(a)). Cutting off: truncation is a detach in the plain loop."""

import pytest
import torch
from linear_cases import PAIRS, ROWS, Built, Case, assert_same_bits, exact, forced, fused, total
from linear_optimizers import USUAL
from tolerance import assert_all_match

import pybilevel as pb

A, B = 4, 3


def case_of(pair, **options):
    loss, targets, _, optimizer, variant = pair
    return Case(loss, targets, optimizer, variant, **options)


def in_two_calls(case, leaves, *, detach=False):
    """The results of A steps and then B more; settings are cut along the steps."""
    built = Built(case, leaves)
    optimizers = []
    for part in (slice(0, A), slice(A, A + B)):
        cut = {name: value[..., part] for name, value in built.settings.items()}
        optimizers.append(built.solver_with(cut))
    _, state = pb.unroll(
        built.problem, built.w0, steps=A, optimizer=optimizers[0], return_state=True, backend="fused"
    )
    state = state.detach() if detach else state
    w, last = pb.unroll(
        built.problem, steps=B, optimizer=optimizers[1], state=state, return_state=True, backend="fused"
    )
    assert last.step == A + B
    return {"w": w} | built.buffers(last)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_state(pair):
    """Values and gradients, those through the state included; values bitwise in primal coordinates."""
    case = case_of(pair, steps=A + B, objective="state")
    with forced(pair[2]):
        whole = fused(case)
        leaves = case.inputs()
        parts = in_two_calls(case, leaves)
    assert_all_match({k: v.detach() for k, v in parts.items()}, whole.values)
    found = torch.autograd.grad(total(parts), list(leaves.values()))
    assert_all_match(dict(zip(leaves, found, strict=True)), exact(case).gradients)
    if pair[2] == "primal":
        for name, value in whole.values.items():
            assert torch.equal(parts[name], value)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_detached_state_is_truncation(row):
    case = case_of((*row, USUAL[row[-1]]), steps=A + B, objective="state")
    leaves = case.inputs()
    with forced(row[2]):
        parts = in_two_calls(case, leaves, detach=True)
    found = torch.autograd.grad(total(parts), list(leaves.values()), allow_unused=True)
    expected = exact(case, truncate=B).gradients
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        assert_all_match([gradient], [expected[name]])


@pytest.mark.parametrize("truncate", [1, 3, 6, 7, 50])
@pytest.mark.parametrize("objective", ["state", "ho"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_truncation(pair, objective, truncate):
    """Zeros before the cut, for w0 and for the settings of the earlier steps too, never None."""
    case = case_of(pair, steps=7, objective=objective)
    with forced(pair[2]):
        found = fused(case, method=pb.Reverse(truncate=truncate))
        rewritten = fused(case, method=pb.Reverse(truncate=truncate), memory=pb.Revolve(2))
    expected = exact(case, truncate=truncate)
    assert_all_match(found.values, expected.values)
    assert_all_match(found.gradients, expected.gradients)
    assert_same_bits(rewritten, found)
    if truncate < 7:
        assert not found.gradients["w0"].any() and not found.gradients["lr"][..., : 7 - truncate].any()
