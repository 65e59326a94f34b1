"""What a call remembers of those before it: nothing that its own options, inputs or surroundings change."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from linear_cases import Case, assert_same_bits, fused
from mlp_cases import MlpCase, solve
from small_problems import leaf
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import pybilevel as pb
from pybilevel.engine import itinerary, perceptron, recipe
from pybilevel.engine.itinerary import there_and_back
from pybilevel.engine.layout import kept_design

CASE = Case(loss="squared", targets="soft", variant="momentum", objective="ho", steps=6)

CHANGES = {
    "nothing": {},
    "steps": {"steps": 7},
    "dtype": {"dtype": torch.float32},
    "rows": {"n": 40},
    "tasks": {"tasks": (40,)},
    "no tasks": {"tasks": ()},
    "two axes of tasks": {"tasks": (2, 2)},
    "no bias": {"bias": False},
    "softmax": {"loss": "softmax"},
    "another optimizer": {"optimizer": "adam", "variant": "plain"},
    "no momentum": {"variant": "plain"},
    "no weights": {"weights": "none"},
    "no w0": {"w0": False},
    "a penalty that is a number": {"l2": "number"},
    "a sum": {"reduction": "sum"},
}


def forget():
    for remembered in (kept_design, perceptron.kept_slot_bytes, itinerary._remembered):
        remembered.cache_clear()
    recipe.forget()


@pytest.fixture(autouse=True)
def nothing_remembered(recipes):
    forget()


def assert_not_mistaken(run, case, change):
    """Bitwise the same right after a call that differs from it in one thing, and when nothing was called before."""
    changed = replace(case, **change)
    expected = run(changed)
    forget()
    run(case)
    assert_same_bits(run(changed), expected)


@pytest.mark.parametrize("name", CHANGES)
def test_a_call_is_not_mistaken_for_the_one_before(name):
    assert_not_mistaken(fused, CASE, CHANGES[name])


NETWORK = MlpCase(variant="momentum", objective="ho", steps=6)
NETWORK_CHANGES = {
    "sizes": {"sizes": (3, 9, 4)},
    "tasks": {"tasks": (7,)},
    "dtype": {"dtype": torch.float32},
    "steps": {"steps": 7},
    "buffers": {"variant": "plain"},
    "another optimizer": {"optimizer": "adam", "variant": "plain"},
}


@pytest.mark.parametrize("name", NETWORK_CHANGES)
def test_a_call_on_a_network_is_not_mistaken_for_the_one_before(name):
    assert_not_mistaken(solve, NETWORK, NETWORK_CHANGES[name])


def gradients(x, grad=True, **options):
    """w_T and, if there is one, the gradient of x; and the slots of the trajectory of the call."""
    inner = pb.SoftmaxRegression(x, torch.arange(6).expand(3, 6) % 3, num_classes=3)
    rule = {"steps": 9, "optimizer": pb.SGD(0.3), "backend": "fused", **options}
    with torch.set_grad_enabled(grad):
        w = pb.unroll(inner, **rule)
        slots = pb.explain(pb.unroll, inner, **rule).slots
    return w.detach(), torch.autograd.grad(w.sum(), x)[0] if w.requires_grad else None, slots


def test_memory_requests_alternate():
    x, slots = leaf(3, 6, 4), []
    expected = gradients(x)
    for memory in (pb.Revolve(2), "auto", pb.Revolve(3), "1GiB", pb.StoreAll(), pb.Revolve(2)):
        w, x_bar, used = gradients(x, memory=memory)
        assert torch.equal(w, expected[0]) and torch.equal(x_bar, expected[1])
        slots.append(used)
    assert slots == [2, 8, 3, 8, 8, 2]


def test_grad_mode_and_needs_alternate():
    x = leaf(3, 6, 4)
    for given, grad in ((x, True), (x, False), (x.detach(), True), (x, True), (x.detach(), False), (x, True)):
        w, x_bar, _ = gradients(given, grad)
        assert (x_bar is not None) == (grad and given.requires_grad)
        assert torch.equal(w, gradients(x)[0])
    with torch.inference_mode():
        pb.unroll(pb.LeastSquares(x, x), steps=9, optimizer=pb.SGD(0.3))
    w = pb.unroll(pb.LeastSquares(x, x), steps=9, optimizer=pb.SGD(0.3))
    assert torch.autograd.grad(w.sum(), x)[0].any()


def test_a_budget_knows_the_number_of_threads():
    """Scratch is that of the threads there are, not of those that there were at an earlier call alike."""
    x = leaf(64, 6, 4)
    inner = pb.SoftmaxRegression(x, torch.arange(6).expand(64, 6) % 3, num_classes=3)
    threads, peaks = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 1):
            torch.set_num_threads(count)
            explained = pb.explain(pb.unroll, inner, steps=9, optimizer=pb.SGD(0.3), memory=pb.Revolve(2))
            peaks.append(explained.peak_memory)
            with pytest.raises(ValueError, match="too small"):
                pb.unroll(inner, steps=9, optimizer=pb.SGD(0.3), memory=explained.peak_memory // 2)
    finally:
        torch.set_num_threads(threads)
    assert peaks[0] == peaks[3] and all(a < b for a, b in pairwise(peaks[:3]))


FORMS = ("number", "()", "[*B, 1]", "[*B, T]", "[T]")


@pytest.mark.parametrize(
    ("tasks", "form"),
    [(tasks, form) for tasks in [(), (3,), (2, 2)] for form in FORMS if tasks or form != "[*B, 1]"],
)
def test_forms_of_settings_reach_the_node_as_they_are(tasks, form):
    """Its gradients have the shapes of what was given, and the values of the generic engine."""
    shapes = {"()": (), "[*B, 1]": (*tasks, 1), "[*B, T]": (*tasks, 5), "[T]": (5,)}
    lr = 0.1 if form == "number" else torch.full(shapes[form], 0.1, dtype=torch.float64, requires_grad=True)
    l2, weights = (
        torch.full(tasks, 0.2).double().requires_grad_(),
        torch.ones(*tasks, 6).double().requires_grad_(),
    )
    x, w0 = leaf(*tasks, 6, 4), leaf(*tasks, 5, 3)
    leaves = [x, w0, weights, l2] + ([] if form == "number" else [lr])
    found = []
    for backend in ("fused", "generic"):
        y = torch.arange(6, dtype=torch.int32).expand(*tasks, 6) % 3
        inner = pb.SoftmaxRegression(x, y, num_classes=3, weights=weights, l2=l2)
        w = pb.unroll(inner, w0, steps=5, optimizer=pb.SGD(lr), backend=backend)
        found.append(torch.autograd.grad(w.square().sum(), leaves))
    for ours, theirs, given in zip(*found, leaves, strict=True):
        assert ours.shape == given.shape
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared", [(), (0,), (0, 1, 2, 3)])
@pytest.mark.parametrize("tasks", [(), (3,), (2, 2)])
def test_leaves_of_a_perceptron_reach_the_node_as_they_are(tasks, shared):
    """All of all tasks, all of each, or some of either kind."""
    y = leaf(*tasks, 6, 2).detach()
    x, shapes = leaf(*tasks, 6, 3), ((3, 5), (5,), (5, 2), (2,))
    w0 = [leaf(*(() if i in shared else tasks), *shape) for i, shape in enumerate(shapes)]
    found = []
    for backend in ("fused", "generic"):
        inner = pb.MLP(x, y, sizes=(3, 5, 2), activation="tanh")
        loss = pb.ho_objective(inner, inner, w0, steps=3, optimizer=pb.SGD(0.1), backend=backend).sum()
        found.append(torch.autograd.grad(loss, [x, *w0]))
    for ours, theirs, given in zip(*found, [x, *w0], strict=True):
        assert ours.shape == given.shape
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_second_backward_and_a_partial_one():
    """The trajectory is used up by the first; who asks for one gradient gets that of all."""
    x, lr = leaf(3, 6, 4), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inner = pb.SoftmaxRegression(x, torch.arange(6).expand(3, 6) % 3, num_classes=3)
    loss = pb.unroll(inner, steps=5, optimizer=pb.SGD(lr, 0.5), backend="fused").square().sum()
    expected = torch.autograd.grad(loss, (x, lr), retain_graph=True)
    for inputs in ((x, lr), (lr,), (x,)):
        found = torch.autograd.grad(loss, inputs, retain_graph=True)
        for given, grad in zip(inputs, found, strict=True):
            assert torch.equal(grad, expected[0 if given is x else 1])
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_forward_mode_and_transforms_are_refused():
    """Rather than silently wrong; and a call after it finds nothing of theirs."""
    y = torch.arange(6).expand(3, 6) % 3

    def loss(x):
        inner = pb.SoftmaxRegression(x, y, num_classes=3)
        return pb.unroll(inner, steps=2, optimizer=pb.SGD(0.3), backend="fused").sum()

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(leaf(3, 6, 4).detach())
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
        loss(forward_ad.make_dual(leaf(3, 6, 4).detach(), leaf(3, 6, 4).detach()))
    x = leaf(3, 6, 4)
    (before,) = torch.autograd.grad(loss(x), x)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], before, rtol=1e-12, atol=1e-12)


def test_a_plan_made_within_a_mode_stays_there():
    """Fake tensors and those of inference mode are not found by the next call, nor its own by them."""
    x = leaf(3, 6, 4)
    schedule = pb.Revolve(2)
    for steps in (7, 8):
        if steps == 8:  # the plain plan is there first
            gradients(x, steps=steps, memory=schedule)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(there_and_back(schedule, steps, False).ops, FakeTensor)
        with torch.inference_mode():
            assert there_and_back(schedule, steps, False).ops.is_inference()
        ops = there_and_back(schedule, steps, False).ops
        assert type(ops) is torch.Tensor and not ops.is_inference()
        assert gradients(x, steps=steps, memory=schedule)[1].any()


def test_fake_tensors_have_a_shape_and_no_values_to_look_at():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, y = (mode.from_tensor(torch.randn(3, 5, d)) for d in (4, 2))
        w = pb.unroll(pb.LeastSquares(x, y), steps=3, optimizer=pb.SGD(0.1))
    assert isinstance(w, FakeTensor) and w.shape == (3, 5, 2)


LAYERS = (4, 6, 2)


def perceptrons():
    """From the leaves of initial perceptrons to their losses; what is looked into is made here, untraced."""
    rows = pb.MLP(torch.randn(3, 5, 4), torch.randn(3, 5, 2), sizes=LAYERS, l2=torch.full((3,), 0.1))
    optimizer = pb.SGD(torch.full((3, 3), 0.1))

    def adapted(leaves):
        w0 = [tuple(leaves[:2]), tuple(leaves[2:])]
        return pb.ho_objective(rows, rows, w0, steps=3, optimizer=optimizer)

    return adapted


def test_a_traced_call_is_traced_whole():
    """Neither the leaves of a perceptron, nor their cotangents, pass a tracing mode unseen."""
    adapted = perceptrons()
    leaves = [leaf.requires_grad_() for pair in pb.MLP.init(LAYERS) for leaf in pair]

    def gradients(*given):
        return torch.autograd.grad(adapted(list(given)).sum(), given)

    traced = make_fx(gradients, tracing_mode="real")(*leaves)
    others = [(2 * leaf.detach()).requires_grad_() for leaf in leaves]
    for found, expected in zip(traced(*others), gradients(*others), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_leaf_whose_sign_is_a_flag():
    adapted = perceptrons()
    w, b, v, c = [leaf for pair in pb.MLP.init(LAYERS) for leaf in pair]
    flagged = torch.complex(torch.zeros(2), -c).conj().imag[:]
    assert flagged.is_neg() and torch.equal(flagged, c)
    torch.testing.assert_close(adapted([w, b, v, flagged]), adapted([w, b, v, c]))


def test_an_error_of_a_hook_is_not_ours():
    """A call that is remembered runs once, whatever its hooks raise."""
    seen = []

    def pack(tensor):
        seen.append(tensor)
        raise IndexError("of the hook")

    x = torch.randn(3, 5, 4, requires_grad=True)
    problem = pb.SoftmaxRegression(x, torch.zeros(3, 5, dtype=torch.long), num_classes=2)
    pb.unroll(problem, steps=3, optimizer=pb.SGD(0.1))
    with (
        pytest.raises(IndexError, match="of the hook"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        pb.unroll(problem, steps=3, optimizer=pb.SGD(0.1))
    assert len(seen) == 1


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_a_checkpoint_finds_again_what_the_first_call_kept(tasks):
    """torch compares what a function keeps, run for the first time, with what it keeps when it is run again."""
    x, y = leaf(*tasks, 6, 4), torch.arange(6).expand(*tasks, 6) % 3

    def loss(x):
        options = {"steps": 4, "optimizer": pb.SGD(0.3), "num_classes": 3, "backend": "fused"}
        return pb.ml_objective(x, y, x, y, **options).loss.sum()

    recipe.forget()
    (gradient,) = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), x)
    assert torch.equal(gradient, torch.autograd.grad(loss(x), x)[0])


def test_a_profiler_sees_both_halves():
    """Which nobody watches otherwise, and which then need no dispatcher."""
    x = leaf(3, 6, 4)
    with torch.autograd.profiler.profile() as seen:
        gradients(x)
    names = {event.key for event in seen.key_averages()}
    assert {"pybilevel::linear_unroll", "pybilevel::linear_unroll_backward"} <= names


def test_a_result_changed_in_place_is_an_error():
    """Of a call that is laid out, and of one that is remembered; inputs too."""
    x, y = leaf(3, 6, 4), torch.arange(6).expand(3, 6) % 3
    for changed in ("loss", "logits", "logits", "query"):
        query = x.detach().clone()
        found = pb.ml_objective(x, y, query, y, steps=3, optimizer=pb.SGD(0.3), num_classes=3)
        (query if changed == "query" else getattr(found, changed).detach()).zero_()
        if changed == "loss":  # which nobody needs again
            found.loss.sum().backward()
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            found.loss.sum().backward()
