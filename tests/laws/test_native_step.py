"""One step over all parameters in a native call: the step of every optimizer in torch, and its vjp."""

from unittest import mock

import pytest
import torch
from optimizer_cases import CASES, VARIANTS, build, optimizers
from tolerance import assert_all_match, relative_error

import pybilevel as pb
from pybilevel.engine.native_step import NativeStep
from pybilevel.ops import OPTIMIZERS, chain_step, optimizer_pullback, optimizer_step

SHAPES = [(3, 5), (), (0,), (1,), (513,), (70, 9), (40000,)]
"""Whole blocks and parts of them, empty and single ones, and more than one thread takes."""

START = 4


def flat(lists):
    return [x for one in lists for x in one]


class Point:
    """A step of an optimizer at random parameters, gradients, buffers and cotangents."""

    def __init__(self, name, variant, dtype=torch.float64, shapes=SHAPES):
        numbers, flags = VARIANTS[name][variant]
        self.settings = {key: torch.tensor(value, dtype=dtype) for key, value in numbers.items()}
        self.solver = build(optimizers()[name], **self.settings, **flags)
        self.row = OPTIMIZERS[name]
        self.kept = self.row.kept(self.solver, self.settings)

        def draw(scale=1.0):
            return [torch.randn(shape, dtype=dtype) * scale for shape in shapes]

        self.w, self.g, self.w_bar = draw(), draw(), draw()
        positive = [
            [b.abs() + 0.1 for b in leaf] for leaf in zip(*(draw() for _ in range(self.kept)), strict=True)
        ]
        self.buffers = positive or [[] for _ in shapes]
        if flags.get(
            "centered"
        ):  # a mean square is more than the square of a mean: else the root is that of rounding
            self.buffers = [[square + mean * mean, mean, *more] for square, mean, *more in self.buffers]
        self.buffer_bars = [[torch.randn_like(b) for b in leaf] for leaf in self.buffers]

    def to(self, device):
        for name in ("w", "g", "w_bar"):
            setattr(self, name, [x.to(device) for x in getattr(self, name)])
        for name in ("buffers", "buffer_bars"):
            setattr(self, name, [[x.to(device) for x in leaf] for leaf in getattr(self, name)])
        self.settings = {key: x.to(device) for key, x in self.settings.items()}

    def arguments(self):
        ordered = self.row.ordered(self.settings)
        return ordered, self.solver.name, self.row.bits(self.solver), START

    def native_step(self):
        return optimizer_step(self.w, self.g, flat(self.buffers), *self.arguments())

    def native_pullback(self):
        bars = self.w_bar, flat(self.buffer_bars)
        return optimizer_pullback(self.w, self.g, flat(self.buffers), *bars, *self.arguments())

    def torch_step(self):
        """After the step: all w, then the buffers of every leaf; the count left out."""
        count = [torch.tensor(float(START))] if "step" in self.solver.buffer_names else []
        stepped = [
            self.solver.step(w, g, (*buffers, *count), self.settings)
            for w, g, buffers in zip(self.w, self.g, self.buffers, strict=True)
        ]
        return [w for w, _ in stepped] + [b for _, buffers in stepped for b in buffers[: self.kept]]

    def torch_pullback(self):
        """Cotangents of w, buffers, gradients, and of the settings that the optimizer has."""
        inputs = [*self.w, *flat(self.buffers), *self.g, *self.settings.values()]
        for x in inputs:
            x.requires_grad_()
        bars = [*self.w_bar, *flat(self.buffer_bars)]
        found = torch.autograd.grad(self.torch_step(), inputs, bars, materialize_grads=True)
        for x in inputs:
            x.requires_grad_(False)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_step(name, variant, dtype):
    point = Point(name, variant, dtype)
    found, expected = point.native_step(), point.torch_step()
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert_all_match(found, expected)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_pullback(name, variant):
    point = Point(name, variant)
    *found, settings = point.native_pullback()
    named = dict(zip(point.row.settings, settings, strict=True))
    assert all(not bar for key, bar in named.items() if key not in point.settings)
    assert_all_match([*found, *(named[key] for key in point.settings)], point.torch_pullback())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_count_is_a_start_that_a_kernel_reads(name, variant):
    point = Point(name, variant)
    *rest, start = point.arguments()
    counted = (*rest, 1, torch.tensor(start - 1.0))
    bars = point.w_bar, flat(point.buffer_bars)
    again = [
        *optimizer_step(point.w, point.g, flat(point.buffers), *counted),
        *optimizer_pullback(point.w, point.g, flat(point.buffers), *bars, *counted),
    ]
    expected = [*point.native_step(), *point.native_pullback()]
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_on_a_gpu(name, variant, dtype):
    """Step and pullback of the CPU kernels, and the same bits twice; a host that waits for the device is an error."""
    point = Point(name, variant, dtype)
    expected = [*point.native_step(), *point.native_pullback()]
    point.to("cuda")
    ordered, *rest, start = point.arguments()
    counted = (ordered, *rest, 0, torch.tensor(float(start), device="cuda"))
    bars = point.w_bar, flat(point.buffer_bars)

    def run():
        step = optimizer_step(point.w, point.g, flat(point.buffers), *counted)
        return [*step, *optimizer_pullback(point.w, point.g, flat(point.buffers), *bars, *counted)]

    torch.cuda.set_sync_debug_mode("error")
    try:
        found, again = run(), run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_all_match([x.cpu() for x in found], expected)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_engine_takes_it_on_a_gpu(name, variant):
    w0, h = start(), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    expected = solve(w0, h, name, variant)
    on_cuda = {key: x.detach().cuda().requires_grad_() for key, x in w0.items()}
    with mock.patch("pybilevel.engine.native_step.optimizer_step", wraps=optimizer_step) as step:
        found = solve(on_cuda, h.detach().cuda().requires_grad_(), name, variant)
    assert step.call_count >= 6
    for ours, theirs in zip(found, expected, strict=True):
        assert_all_match([x.cpu() for x in ours], theirs)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_threads_change_no_bit(name, variant):
    point = Point(name, variant, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append([*point.native_step(), *point.native_pullback()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_strided_tensors_are_read_as_they_are():
    point = Point("adam", "decay", shapes=[(6, 8)])
    expected = point.native_step()
    point.w = [point.w[0].t().contiguous().t()]
    point.g = [torch.stack([point.g[0]] * 2, -1)[..., 0]]
    assert not point.w[0].is_contiguous() and not point.g[0].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(point.native_step(), expected, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"g": []}, ValueError, "g must have 1 for each of 1 parameters, got 0"),
        ({"g": [torch.zeros(3)]}, ValueError, r"g\[0\] must be \[2\] of Float on cpu, got \[3\]"),
        ({"w": [torch.zeros(2).half()]}, TypeError, "w is Half; fused operators take float32 or float64"),
        ({"w": []}, ValueError, "w has no parameters"),
        ({"buffers": [torch.zeros(2)]}, ValueError, "buffers must have 0 for each of 1 parameters, got 1"),
        ({"settings": [None] * 5}, ValueError, "sgd needs the setting lr"),
        ({"settings": [torch.ones(2)] + [None] * 4}, ValueError, r"lr must have one value, got \[2\]"),
        ({"settings": [torch.ones(())]}, ValueError, "settings must have 5 entries"),
        ({"optimizer": "newton"}, ValueError, "unknown optimizer 'newton'"),
    ],
)
def test_the_operator_checks_what_it_is_given(change, error, text):
    given = {"w": [torch.zeros(2)], "g": [torch.zeros(2)], "buffers": []}
    given |= {"settings": [torch.ones(()), *[None] * 4], "optimizer": "sgd", "flags": 0, "start": 0}
    with pytest.raises(error, match=text):
        optimizer_step(**(given | change))


def network(w, h):
    return ((h @ w["a"]).tanh() @ w["b"]).square().mean() + w["c"].cos().sum()


def start():
    shapes = {"a": (4, 3), "b": (3, 2), "c": (5,)}
    return {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


def solve(w0, h, name, variant, memory="auto"):
    numbers, flags = VARIANTS[name][variant]
    settings = {
        key: torch.tensor(value, dtype=torch.float64, device=h.device, requires_grad=True)
        for key, value in numbers.items()
    }
    w, state = pb.unroll(
        network,
        w0,
        h,
        steps=6,
        optimizer=build(optimizers()[name], **settings, **flags),
        memory=memory,
        return_state=True,
    )
    outputs = [*w.values(), *(b for buffers in state.buffers for b in buffers if b.ndim)]
    total = sum(
        (x * torch.arange(1.0, 1 + x.numel(), device=x.device).reshape(x.shape)).sin().sum() for x in outputs
    )
    found = torch.autograd.grad(total, [*w0.values(), h, *settings.values()])
    return [x.detach() for x in outputs], found


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_engine_takes_it_and_finds_the_same(name, variant):
    """Against torch operations, and bitwise the same under every schedule."""
    w0, h = start(), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    module = "pybilevel.engine.native_step"
    with (
        mock.patch(f"{module}.optimizer_step", wraps=optimizer_step) as step,
        mock.patch(f"{module}.chain_step", wraps=chain_step) as node,
    ):
        found = solve(w0, h, name, variant)
        assert node.call_count >= 6  # the graphs of all steps fit
        solve(w0, h, name, variant, pb.StoreAll())
        assert step.call_count >= 6
    with mock.patch.object(NativeStep, "of", lambda *_: None):
        expected = solve(w0, h, name, variant)
    for ours, theirs in zip(found, expected, strict=True):
        assert_all_match(ours, theirs)
    for schedule in (pb.StoreAll(), pb.Revolve(2)):
        for ours, again in zip(found, solve(w0, h, name, variant, schedule), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_parameters_that_have_made_different_numbers_of_steps_go_on_in_torch():
    """As after a torch.optim run in which some had no gradient."""
    w0, h = start(), torch.randn(7, 4, dtype=torch.float64)
    solver = pb.Adam(0.05)
    _, state = pb.unroll(network, w0, h, steps=2, optimizer=solver, return_state=True)
    state = state.detach()
    state.buffers = (state.buffers[0], *((*b[:-1], b[-1] + 3.0) for b in state.buffers[1:]))
    found = pb.unroll(network, None, h, steps=2, optimizer=solver, state=state)
    with mock.patch.object(NativeStep, "of", lambda *_: None):
        expected = pb.unroll(network, None, h, steps=2, optimizer=solver, state=state)
    assert all(relative_error(found[key], expected[key]) == 0 for key in found)
