"""The inner dynamics of a call as pure functions of flat tensors: one step, and its pullback."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.call import Call
from pybilevel.engine.callbacks import Observer
from pybilevel.engine.curvature import GradientMap, Inspect, Pull, Push
from pybilevel.engine.iterate import Iterate, Moment, Tensors
from pybilevel.engine.links import Links, NativeLinks, TorchLinks
from pybilevel.engine.losses import Bound, CallableLoss, First
from pybilevel.engine.native_step import NativeStep
from pybilevel.engine.problem_loss import ProblemLoss
from pybilevel.engine.state import State
from pybilevel.engine.torch_step import PullStep, TorchStep
from pybilevel.engine.trees import builder
from pybilevel.methods import Reverse

Seen = list[tuple[Tensor, Tensors]]
"""Where the loss and the gradient of a step go."""


class Dynamics:
    """w_{t+1} = Phi_t(w_t, theta), of the inner loss and the optimizer of a call.

    Args:
        keep_first: keep the graph of the first pass through a callable for `first_graph`.

    Attributes:
        start: the iterate at t = 0 (part of the caller's graph).
        theta: the differentiable inputs of the loss: hparams, captured tensors and learnable batches, or the
            problem's tensors.
        settings: the settings, one tensor each, and one a leaf for those with a value a parameter.
        gradient_map: the gradient of the loss in w, and its pullback; takes `theta_at(theta, t)`.
        streams: the random generators that the loss draws from.
        observer: hands what happens to the callback of the call, if it has one.
        tape_bytes: an estimate of what one step's gradient and its pullback hold.
    """

    def __init__(self, call: Call, keep_first: bool = False) -> None:
        w, self.spec = pytree.tree_flatten(call.initial())
        problem = call.problem
        self._loss = (
            CallableLoss(call, w, self.spec, keep_first)
            if problem is None
            else ProblemLoss(call, problem, self.spec)
        )
        self.start = Iterate(tuple(w), call.buffers_of(w), self._loss.carried)
        self.theta: Tensors = self._loss.theta
        self.streams = self._loss.streams
        self.observer = (
            None
            if call.callback is None
            else Observer(call.callback, self.spec, call.start, self._loss.streams)
        )
        self.tape_bytes = self._loss.tape_bytes
        self.gradient_map = GradientMap(
            self._loss, self._loss.nested, self._loss.forward_only, self._loss.direct
        )
        self._first_order = isinstance(call.method, Reverse) and call.method.first_order
        self._optimizer = call.optimizer
        self._native = NativeStep.of(call, w)
        self._keys: list[tuple[str, int | None]] = [(name, None) for name in call.settings]
        self._keys += [(name, i) for name, values in call.elementwise.items() for i in range(len(values))]
        self._step = TorchStep(call.optimizer, self._keys)
        self.settings: Tensors = [
            *call.settings.values(),
            *(v for vs in call.elementwise.values() for v in vs),
        ]

    def constants(self) -> tuple[Tensors, Tensors]:
        """theta and settings without their graphs."""
        return [x.detach() for x in self.theta], [x.detach() for x in self.settings]

    def wanted(self) -> tuple[list[bool], list[bool]]:
        """Which of theta and of settings ask for a gradient."""
        return [x.requires_grad for x in self.theta], [x.requires_grad for x in self.settings]

    def advance(
        self,
        t: int,
        now: Iterate,
        theta: Tensors,
        settings: Tensors,
        watched: bool = False,
        seen: Seen | None = None,
    ) -> Iterate:
        """The iterate t + 1 from the iterate t.

        `watched` looks for tensors that the first pass did not see; to `seen` goes the pair of loss and gradient at t.
        """
        moment = Moment(t, now.carried)
        losses: Tensors = []
        inspect = self._inspector(watched, losses)
        g = self.gradient_map.gradient(now.w, self.theta_at(theta, t), inspect, moment)
        if seen is not None:
            seen.append((losses[0], g))
        values = self.at(settings, t)
        if self._native is not None and not torch.is_grad_enabled() and self._native.takes(now):
            return self._native.step(now, g, values, moment.after)
        return self.step(now, g, values, moment.after)

    def linearise_tangents(
        self, t: int, now: Iterate, theta: Tensors, wanted_theta: Sequence[bool], moment: Moment
    ) -> tuple[Tensor, Tensors, Push]:
        """The inner loss and gradient at the iterate t, and the map of the gradient's tangents; watches as `advance`.

        The tangents of theta are those of what step t uses of it; `moment` is that of this step and iterate.
        """
        losses: Tensors = []
        inspect = self._inspector(True, losses)
        g, push = self.gradient_map.linearise_tangents(
            now.w, self.theta_at(theta, t), wanted_theta, inspect, moment
        )
        return losses[0], g, push

    def pullback(
        self,
        t: int,
        now: Iterate,
        bar: Iterate,
        theta: Tensors,
        settings: Tensors,
        wanted_theta: Sequence[bool],
        wanted_settings: Sequence[bool],
        sums: Sequence[Tensor] | None = None,
    ) -> tuple[Iterate, Tensors, Tensors]:
        """What `PullStep` says, of the step t from the iterate `now`.

        `bar` is the cotangent of the iterate t + 1; `place_theta` and `place` say where those of what step t uses of
        theta and of settings belong. Without `sums` they begin at zero.
        """
        pull = self.pull_step(t, now, theta, settings, wanted_theta, wanted_settings)
        if sums is None:
            given = zip(self.theta_at(theta, t), wanted_theta, strict=True)
            sums = [torch.zeros_like(x) for x, need in given if need]
        return pull(bar, sums)

    def linearise(
        self,
        t: int,
        now: Iterate,
        theta: Tensors,
        settings: Tensors,
        wanted_theta: Sequence[bool],
        wanted_settings: Sequence[bool],
        retain: bool = False,
        watched: bool = False,
        seen: Seen | None = None,
    ) -> tuple[Iterate, PullStep]:
        """The iterate t + 1, and the pullback of step t: for one call; `retain`: for any.

        `watched` and `seen` as of `advance`.
        """
        losses: Tensors = []
        inspect = self._inspector(watched, losses)
        moment = Moment(t, now.carried)
        g, pull = self._linearise_gradient(
            now, self.theta_at(theta, t), wanted_theta, moment, retain, inspect
        )
        if seen is not None:
            seen.append((losses[0], g))
        values = self.at(settings, t)
        if self._native is not None and self._native.takes(now):
            pull_step = self._native.pull_step(now, g, values, wanted_settings, pull)
            with torch.no_grad():
                return self._native.step(now, g, values, moment.after), pull_step
        return self._step.linearise(now, g, values, wanted_settings, pull, moment.after, retain)

    def pull_step(
        self,
        t: int,
        now: Iterate,
        theta: Tensors,
        settings: Tensors,
        wanted_theta: Sequence[bool],
        wanted_settings: Sequence[bool],
    ) -> PullStep:
        """The pullback of step t alone, for one call: a native step is not made for it."""
        moment = Moment(t, now.carried)
        g, pull = self._linearise_gradient(now, self.theta_at(theta, t), wanted_theta, moment)
        values = self.at(settings, t)
        if self._native is not None and self._native.takes(now):
            return self._native.pull_step(now, g, values, wanted_settings, pull)
        return self._step.linearise(now, g, values, wanted_settings, pull, moment.after)[1]

    def _linearise_gradient(
        self,
        now: Iterate,
        given: Tensors,
        wanted: Sequence[bool],
        moment: Moment,
        retain: bool = False,
        inspect: Inspect | None = None,
    ) -> tuple[Tensors, Pull]:
        """The inner gradient at an iterate and its pullback, or that of a constant; `given` is theta at the step."""
        if not self._first_order:
            return self.gradient_map.linearise(now.w, given, wanted, moment, retain, inspect)
        g = self.gradient_map.gradient(now.w, given, inspect, moment)
        return g, _constant([*now.w, *(x for x, need in zip(given, wanted, strict=True) if need)])

    def one_formula(self) -> bool:
        """Whether the steps watched so far are known to have the same bits with a graph as without."""
        return self._loss.one_formula()

    def chains(self) -> bool:
        """Whether steps can be made in one graph: then a cotangent is what step after step would give, bit by bit."""
        return not (self._loss.nested or self._first_order)

    def links(self, first: Iterate, steps: int, asked: Sequence[bool]) -> Links:
        """The optimizer's steps of a chain from its first iterate; `asked`: which settings ask for gradients."""
        if self._native is not None and self._native.takes(first):
            return NativeLinks(self._native, first, steps, asked)
        return TorchLinks(self._step, first, asked)

    @property
    def stacks(self) -> int:
        """How many of theta, at the end, have a leading steps axis."""
        return self._loss.stacks

    def bound(self, theta: Tensors) -> Bound:
        """The loss of chained steps, by what they use of theta."""
        return self._loss.bound(theta)

    def first_graph(self) -> First | None:
        """The graph of the loss at t = 0, handed over once, where the first pass left one that `bound` would make."""
        return self._loss.first_graph(self.theta)

    def check_changed(self) -> None:
        """Raise if a tensor that the loss uses was changed in place since the forward half."""
        self._loss.check_changed()

    def check_replay(self, theta: Tensors) -> None:
        """Raise if the loss has other data than in the forward half, which would give wrong gradients in silence.

        A callable is evaluated once more, at t = 0.
        """
        self._loss.check_replay(self.start.w, self.theta_at(theta, 0))

    def finish(self, last: Iterate, count: int) -> tuple[Any, State]:
        """The parameters of the last iterate as the pytree of w0, and the state after `count` steps over all calls."""
        w = builder(self.spec)(last.w)
        return w, State(
            w,
            last.buffers,
            count,
            self._optimizer.name,
            random=last.carried[: len(self.streams)],
            module_buffers=self._loss.module_buffers(last.carried),
        )

    def place(self, index: int, t: int, whole: Tensor) -> Tensor:
        """The part of a setting's tensor (or of its cotangent) that step t uses, as a view."""
        if whole.ndim == 0:
            return whole
        axis = -1 if self._keys[index][1] is None else 0
        return whole.select(axis, min(t, whole.shape[axis] - 1))

    def at(self, settings: Tensors, t: int) -> Tensors:
        """The values of the settings at step t."""
        return [self.place(i, t, whole) for i, whole in enumerate(settings)]

    def place_theta(self, index: int, t: int, whole: Tensor) -> Tensor:
        """The part of a theta (or of its cotangent) that step t uses: all of it, or the slice of a batch, as a view."""
        return whole if index < len(self.theta) - self._loss.stacks else whole[t]

    def theta_at(self, theta: Tensors, t: int) -> Tensors:
        """The values of theta at step t."""
        return [self.place_theta(i, t, whole) for i, whole in enumerate(theta)]

    def step(
        self, now: Iterate, g: Sequence[Tensor], values: Tensors, carried: tuple[Tensor, ...] = ()
    ) -> Iterate:
        """The optimizer's step in torch operations, from an iterate, by the gradient `g` and the settings' values."""
        return self._step(now, g, values, carried)

    def _inspector(self, watched: bool, losses: Tensors) -> Callable[[Tensor, Tensors], None]:
        """What looks at the graph of a loss: its value goes to `losses`; `inspect` if `watched`."""

        def look(value: Tensor, leaves: Tensors) -> None:
            losses.append(value.detach())
            if watched:
                self.inspect(value, leaves)

        return look

    def inspect(self, value: Tensor, leaves: Tensors) -> None:
        """Raise where the graph of a loss holds a tensor that asks for gradients and that the first pass missed."""
        once = self._loss.inspect(value, leaves)
        if once:
            self.gradient_map.use_forward_mode(f"{', '.join(once)}: once_differentiable")


def _constant(inputs: Sequence[Tensor]) -> Pull:
    """The pullback of an inner gradient that is taken as a constant."""
    zeros = [x.new_zeros(()).expand_as(x) for x in inputs]

    def pull(v: Sequence[Tensor], onto: Sequence[Tensor] | None = None) -> list[Tensor]:
        return zeros if onto is None else list(onto)

    return pull
