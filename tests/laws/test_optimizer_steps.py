"""The laws of inner optimizers: torch.optim's values; derivatives that are those of the step, finite where v = 0."""

import pytest
import torch
from optimizer_cases import CASES, VARIANTS, build, optimizers, resolved, theirs
from tolerance import FINITE_DIFFERENCE_LIMIT, assert_matches

from pybilevel.engine import oracle

each_case = pytest.mark.parametrize("name, variant", CASES)
adaptive = pytest.mark.parametrize("name, variant", [case for case in CASES if case[0] != "sgd"])


def ours(name, variant, **more):
    settings, flags = VARIANTS[name][variant]
    return build(optimizers()[name], **{**settings, **flags, **more})


def test_every_optimizer_has_cases():
    assert optimizers().keys() == VARIANTS.keys() == oracle.RULES.keys()


# ------------------------------------------------------------------------------------------------ values


def gradient(w):
    """Some gradient of w: zero for the first four entries, whose gradients torch.optim must take too."""
    g = w.sin() * torch.arange(w.numel(), dtype=w.dtype).reshape(w.shape)
    return g * (torch.arange(w.numel()).reshape(w.shape) > 3)


def trajectory(name, settings, dtype, steps=30):
    """Parameters and buffers of torch.optim after every step."""
    parameter = torch.nn.Parameter(start().to(dtype))
    reference = theirs(name, parameter, **settings)
    for _ in range(steps):
        parameter.grad = gradient(parameter.detach())
        reference.step()
        state = reference.state[parameter]
        yield parameter.detach().clone(), {k: v.clone() for k, v in state.items() if v is not None}


def start():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# the defaults of torch.optim: decays near 1, whose complements float32 has only roughly
REAL = {
    "sgd": {"lr": 1e-2},
    "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2},
    "rmsprop": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "adagrad": {"lr": 1e-2, "eps": 1e-10},
}
EXTREME = {
    "adam": {"lr": 1e-3, "beta1": 0.0, "beta2": 0.0, "eps": 1e-8},
    "adamw": {"lr": 1e-3, "beta1": 0.9999, "beta2": 0.999999, "eps": 1e-12, "weight_decay": 1e-2},
    "rmsprop": {"lr": 1e-3, "alpha": 0.99999, "eps": 1e-8},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name, settings",
    [(name, {**VARIANTS[name][variant][0], **VARIANTS[name][variant][1]}) for name, variant in CASES]
    + [
        *REAL.items(),
        *EXTREME.items(),
        ("adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-10}),
    ],
    ids=str,
)
def test_values_are_those_of_torch_at_every_step(name, settings, dtype):
    mine = build(optimizers()[name], **settings)
    w, values = start().to(dtype), resolved(mine, dtype)
    buffers = mine.init(w)
    exact, plain = (trajectory(name, settings, d) for d in (torch.float64, dtype))
    for (w_exact, b_exact), (w_plain, b_plain) in zip(exact, plain, strict=True):
        w, buffers = mine.step(w, gradient(w), buffers, values)
        assert_matches(w, w_exact, "w", w_plain)
        for key, found in zip(mine.buffer_names, buffers, strict=True):
            assert found.dtype == (torch.float32 if key == "step" else dtype)
            assert_matches(found, b_exact[key], key, b_plain[key])


# ------------------------------------------------------------------------------------------------ derivatives


def at_some_point(name, variant):
    """An optimizer built from tensors, and all that its step depends on, by name; the buffers are those of 3 steps."""
    mine = ours(name, variant)
    w, values = start(), resolved(mine)
    buffers = mine.init(w)
    for _ in range(3):
        w, buffers = mine.step(w, w.sin(), buffers, values)
    kept = dict(zip(mine.buffer_names, buffers, strict=True))
    inputs = {"w": w, "g": w.sin()} | {k: b for k, b in kept.items() if k != "step"} | values
    return inputs, kept


def stepped(name, variant, inputs, kept):
    """What one step makes of the inputs: w, and the buffers that can be differentiated."""
    settings, flags = VARIANTS[name][variant]
    mine = build(optimizers()[name], **{key: inputs[key] for key in settings}, **flags)
    buffers = tuple(inputs.get(key, kept[key]) for key in mine.buffer_names)
    w, after = mine.step(inputs["w"], inputs["g"], buffers, inputs)
    return [w, *(b for key, b in zip(mine.buffer_names, after, strict=True) if key != "step")]


@each_case
def test_pullback_and_tangents_are_finite_differences_of_the_step(name, variant):
    """In the parameter, the gradient, every buffer and every setting; in reverse and in forward mode, and batched."""
    inputs, kept = at_some_point(name, variant)
    names = list(inputs)
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(
        lambda *given: tuple(stepped(name, variant, dict(zip(names, given, strict=True)), kept)),
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("name, variant", [("adam", "plain"), ("adamw", "plain"), ("adagrad", "everything")])
def test_the_count_is_not_differentiated(name, variant):
    mine = ours(name, variant)
    w = start().requires_grad_()
    *_, count = mine.step(w, w.sin(), mine.init(w), resolved(mine))[1]
    assert count.shape == () and count == 1 and not count.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@adaptive
def test_derivatives_are_finite_where_nothing_ever_moved(name, variant, dtype):
    """g = 0 and v = 0, at the first step and at later ones, with the tiny eps of torch's defaults."""
    more = {"eps": 1e-8} if name in REAL else {}
    leaves = {key: x.to(dtype).requires_grad_() for key, x in resolved(ours(name, variant, **more)).items()}
    w = start().to(dtype).requires_grad_()
    scale = torch.zeros((), dtype=dtype, requires_grad=True)
    _, flags = VARIANTS[name][variant]
    mine = build(optimizers()[name], **leaves, **flags)
    buffers, now = mine.init(w), w
    for _ in range(3):
        g = scale * now.sin() - (leaves["weight_decay"] * now if mine.has_weight_decay else 0.0)
        now, buffers = mine.step(now, g, buffers, leaves)
    if name != "adamw":
        assert torch.equal(now, w)
    total = now.sum() + sum(b.sum() for b in buffers)
    for key, slope in zip(
        ["w", "scale", *leaves],
        torch.autograd.grad(total, [w, scale, *leaves.values()], materialize_grads=True),
        strict=True,
    ):
        assert slope.isfinite().all(), key


@adaptive
def test_the_derivative_where_nothing_moved_is_exact_at_the_first_step(name, variant):
    """What a central difference across the kink of |g| says."""
    mine = ours(name, variant, eps=1e-2, weight_decay=0.0)
    w, values = start(), resolved(mine)
    g = torch.zeros_like(w, requires_grad=True)
    (slope,) = torch.autograd.grad(mine.step(w, g, mine.init(w), values)[0].sum(), g)
    above, below = (mine.step(w, g + s, mine.init(w), values)[0] for s in (1e-10, -1e-10))
    measured = (above - below).detach() / 2e-10
    assert ((slope - measured) / slope).abs().max() < 10 * FINITE_DIFFERENCE_LIMIT


@pytest.mark.parametrize("value", [0.0, 1.0 - 1e-7])
@pytest.mark.parametrize("name, key", [("adam", "beta1"), ("adam", "beta2"), ("rmsprop", "alpha")])
def test_decays_at_their_limits_have_finite_derivatives(name, key, value):
    settings, _ = VARIANTS[name]["plain"]
    leaf = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    mine = build(optimizers()[name], **{**settings, key: leaf})
    values = {k: leaf if k == key else torch.tensor(v).double() for k, v in settings.items()}
    w = start()
    buffers = mine.init(w)
    for _ in range(3):
        w, buffers = mine.step(w, w.sin(), buffers, values)
    (slope,) = torch.autograd.grad(w.sum(), leaf)
    assert slope.isfinite() and slope != 0


def test_centered_rounding_below_zero_counts_as_zero():
    """A constant gradient has no variance; in float32 it may come out negative, and torch.optim then gives NaN."""
    mine = build(optimizers()["rmsprop"], **REAL["rmsprop"], centered=True)
    w, values = torch.zeros(64), resolved(mine, torch.float32)
    g = torch.linspace(1.0, 3.0, 64)
    buffers = (1.0 * g * g * (1 - 1e-7), g.clone())
    w, _ = mine.step(w, g, buffers, values)
    assert w.isfinite().all()


def test_a_nan_stays_one():
    for name, variant in CASES:
        mine = ours(name, variant)
        w = torch.zeros(2, dtype=torch.float64)
        g = torch.tensor([float("nan"), 1.0], dtype=torch.float64)
        assert mine.step(w, g, mine.init(w), resolved(mine))[0].isnan().tolist() == [True, False]
