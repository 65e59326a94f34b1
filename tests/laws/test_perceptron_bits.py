"""What must not change a single bit of a fused perceptron: schedules, budgets, threads, regimes, repetition, poison."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from linear_cases import assert_same_bits, total
from linear_optimizers import USUAL
from mlp_cases import ACTIVATIONS, REGIMES, Built, MlpCase, exact, forced, plain, solve
from tolerance import assert_matches

import pybilevel as pb
from pybilevel import _C

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", USUAL)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_schedules(activation, optimizer, dtype):
    case = MlpCase(activation=activation, optimizer=optimizer, variant=USUAL[optimizer], steps=9, dtype=dtype)
    whole = solve(case)  # with the activations of every state
    for schedule in (
        pb.StoreAll(),
        *(pb.Revolve(c) for c in (1, 2, 4)),
        *(pb.Periodic(k) for k in (1, 3, 20)),
    ):
        assert_same_bits(solve(case, memory=schedule), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_schedules_on_a_gpu(dtype):
    """Repeated, too; weights in shared memory, and (wide) in a workspace."""
    for sizes in ((3, 9, 5, 2), (40, 200, 2)):
        case = MlpCase(sizes=sizes, steps=9, dtype=dtype, device="cuda")
        whole = solve(case)
        for schedule in ("auto", pb.Revolve(2), pb.Periodic(3)):
            assert_same_bits(solve(case, memory=schedule), whole)


@pytest.mark.parametrize("objective", ["state", "ho"])
def test_budgets(objective):
    """From the least budget that is accepted to one that holds everything."""
    case = MlpCase(steps=12, objective=objective)
    whole = solve(case, memory="1GiB")
    with pytest.raises(ValueError, match=r"Give memory >= \d+") as error:
        solve(case, memory=1)
    least = int(str(error.value).rpartition(">= ")[2].rstrip("."))
    for extra in (0, 5000, 20000, 60000):
        assert_same_bits(solve(case, memory=least + extra), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_threads_and_regimes(loss, dtype):
    """1 thread == 2 threads == 3 threads, and a thread per task == all threads on the products of a task."""
    case = MlpCase(loss, tasks=(2,), n=330, m=90, sizes=(40, 70, 50, 11), steps=3, dtype=dtype)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for regime in REGIMES:
                with forced(regime):
                    found.append(solve(case))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_repetition_and_poison(activation, monkeypatch):
    """The same bits again and again, and whether or not fresh scratch is full of NaN."""
    case = MlpCase("cross_entropy", activation=activation)
    poisoned = solve(case)
    monkeypatch.delenv("PYBILEVEL_POISON")
    for _ in range(3):
        assert_same_bits(solve(case), poisoned)


@pytest.mark.parametrize("memory", ["auto", pb.StoreAll(), pb.Revolve(1), pb.Periodic(3)], ids=str)
def test_second_backward(memory):
    """With retain_graph, the reverse half may have overwritten slots: the forward half runs again, to the same bits."""
    leaves = (case := MlpCase(steps=7)).inputs()
    outer = total(Built(case, leaves).run(memory=memory))
    first = torch.autograd.grad(outer, list(leaves.values()), retain_graph=True)
    again = torch.autograd.grad(outer, list(leaves.values()), retain_graph=True)
    for name, a, b in zip(leaves, first, again, strict=True):
        assert torch.equal(a, b), name


def test_batches_of_tasks():
    """A task's result does not depend on the tasks beside it."""
    case = MlpCase(tasks=(70,), n=4, sizes=(2, 5, 2))
    leaves = case.inputs()
    together = Built(case, leaves).run()["loss"]
    for task in (0, 33, 69):
        one = {name: leaf.detach()[task : task + 1] for name, leaf in leaves.items()}
        alone = Built(replace(case, tasks=(1,)), one).run()["loss"]
        assert torch.equal(alone, together[task : task + 1])


# Every instruction set that this processor runs: the choice is made once a process.

CASES = [
    MlpCase(activation=activation, sizes=(3, 20, 9, 2), n=13, dtype=dtype)
    for activation in ACTIVATIONS
    for dtype in DTYPES
]
OTHERS = [isa for isa in _C.build_info()["isa"] if isa != _C.build_info()["isa_in_use"]]
PROGRAM = """
import sys, torch
sys.path[:0] = {folders!r}
from pybilevel import _C
from mlp_cases import solve
from test_perceptron_bits import CASES
assert _C.build_info()["isa_in_use"] == sys.argv[1]
found = [solve(case) for case in CASES]
torch.save([one.values | one.gradients for one in found], sys.argv[2])
"""


@pytest.mark.parametrize("isa", OTHERS)
def test_instruction_sets(isa, tmp_path):
    """Each agrees with the oracle to rounding."""
    here, path = Path(__file__).parent, tmp_path / "results.pt"
    folders = [str(here), str(here.parent), str(here.parent.parent)]
    environment = os.environ | {"PYBILEVEL_ISA": isa, "PYBILEVEL_POISON": "1"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folders=folders), isa, str(path)], env=environment, check=True
    )
    for case, found in zip(CASES, torch.load(path), strict=True):
        best, ordinary = exact(case), plain(case)
        for name, value in (best.values | best.gradients).items():
            assert_matches(found[name], value, name, (ordinary.values | ordinary.gradients)[name])
