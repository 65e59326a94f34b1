"""The inner dynamics of a call as pure functions of flat tensors: one step, and its pullback."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine import captures
from pybilevel.engine.call import Call
from pybilevel.engine.curvature import GradientMap
from pybilevel.optimizers import Buffers

Tensors = list[Tensor]


@dataclass(frozen=True)
class Iterate:
    """The state of the dynamics: parameters, one tensor a leaf, and the optimizer's buffers, one tuple a leaf."""

    w: tuple[Tensor, ...]
    buffers: tuple[Buffers, ...]

    @staticmethod
    def like(template: "Iterate", flat: Sequence[Tensor]) -> "Iterate":
        """The inverse of `flat`, for an iterate with as many tensors as `template`."""
        rest = iter(flat)
        w = tuple(next(rest) for _ in template.w)
        return Iterate(w, tuple(tuple(next(rest) for _ in buffers) for buffers in template.buffers))

    def flat(self) -> Tensors:
        """w, then the buffers leaf by leaf."""
        return [*self.w, *(b for buffers in self.buffers for b in buffers)]

    def detach(self) -> "Iterate":
        """The same values without a graph."""
        return Iterate.like(self, [x.detach() for x in self.flat()])

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(x.nbytes for x in self.flat())


class Dynamics:
    """w_{t+1} = Phi_t(w_t, theta), of the inner loss and the optimizer of a call.

    Attributes:
        start: the iterate at t = 0 (part of the caller's graph).
        theta: the differentiable inputs of the loss: hparams and captured tensors, or the problem's tensors.
        settings: the settings, one tensor each, and one a leaf for those with a value a parameter.
        tape_bytes: an estimate of what one step's gradient and its pullback hold.
    """

    def __init__(self, call: Call) -> None:
        w, self.spec = pytree.tree_flatten(call.initial())
        self.start = Iterate(tuple(w), call.initial_buffers())
        self._optimizer = call.optimizer
        self._tasks = call.tasks
        self._keys: list[tuple[str, int | None]] = [(name, None) for name in call.settings]
        self._keys += [(name, i) for name, values in call.elementwise.items() for i in range(len(values))]
        self.settings: Tensors = [
            *call.settings.values(),
            *(v for vs in call.elementwise.values() for v in vs),
        ]
        self.theta: Tensors
        self._call = call
        if call.problem is not None:
            self._prepare_problem()
        else:
            self._prepare_callable()

    def advance(
        self, t: int, now: Iterate, theta: Tensors, settings: Tensors, watched: bool = False
    ) -> Iterate:
        """The iterate t + 1 from the iterate t; `watched` looks for tensors that the first pass did not see."""
        g = self.gradient_map.gradient(now.w, theta, self.inspect if watched else None)
        return self.step(now, g, self.at(settings, t))

    def pullback(
        self,
        t: int,
        now: Iterate,
        bar: Iterate,
        theta: Tensors,
        settings: Tensors,
        wanted_theta: Sequence[bool],
        wanted_settings: Sequence[bool],
    ) -> tuple[Iterate, Tensors, Tensors]:
        """The cotangents of (iterate t, each wanted theta, each setting's value at t) from that of iterate t + 1."""
        g, pull = self.gradient_map.linearise(now.w, theta, wanted_theta)
        with torch.enable_grad():
            state = Iterate.like(now, [x.detach().requires_grad_() for x in now.flat()])
            g = [x.detach().requires_grad_() for x in g]
            values = [
                x.detach().requires_grad_(need)
                for x, need in zip(self.at(settings, t), wanted_settings, strict=True)
            ]
            after = self.step(state, g, values)
        inputs = [*state.flat(), *g, *(v for v, need in zip(values, wanted_settings, strict=True) if need)]
        pairs = [(x, x_bar) for x, x_bar in zip(after.flat(), bar.flat(), strict=True) if x.requires_grad]
        outputs, bars = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, inputs, bars, materialize_grads=True)
        split = len(now.flat())
        before = Iterate.like(now, found[:split])
        through_g = pull(found[split : split + len(g)])
        w_bar = tuple(a + b for a, b in zip(before.w, through_g[: len(g)], strict=True))
        return Iterate(w_bar, before.buffers), through_g[len(g) :], list(found[split + len(g) :])

    def check_replay(self, theta: Tensors) -> None:
        """Raise if the loss has other data than in the forward half, which would give wrong gradients in silence.

        A callable is evaluated once more, at t = 0.
        """
        inner = self._call.inner
        changed = self._relied.changed()
        if changed:
            raise RuntimeError(
                f"inner uses {captures.describe(inner, changed)}, which was modified by an inplace operation between "
                "forward and backward, so the gradient would be wrong: call backward first, or change a clone"
            )
        if self._call.problem is not None:
            return
        own, probe = self._probe(self.start.w, theta[: len(self._hindex)])
        unknown, same = self._relied.replay(probe, own)
        if unknown:
            raise RuntimeError(
                f"inner uses {captures.describe(inner, unknown)} in the backward but not in the forward (a name that "
                "it captures was bound to something else, such as the next batch), so "
                "the gradient would be wrong: call backward first, or pass the tensor through hparams"
            )
        if not same:
            raise RuntimeError(
                "inner gives another value in the backward than in the forward (a number that it captures changed, or "
                "it draws a batch itself), so the gradient would be wrong: call backward before the change, or pass "
                "what changes through hparams"
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

    def step(self, now: Iterate, g: Sequence[Tensor], values: Tensors) -> Iterate:
        """The optimizer's step from an iterate, by the gradient `g` and the settings' values of the step."""
        stepped = []
        for i, (w, g_leaf, buffers) in enumerate(zip(now.w, g, now.buffers, strict=True)):
            mine = {
                name: v if leaf is not None else v.reshape(v.shape + (1,) * (w.ndim - v.ndim))
                for (name, leaf), v in zip(self._keys, values, strict=True)
                if leaf is None or leaf == i
            }
            stepped.append(self._optimizer.step(w, g_leaf, buffers, mine))
        return Iterate(tuple(w for w, _ in stepped), tuple(b for _, b in stepped))

    def _prepare_problem(self) -> None:
        problem = self._call.problem
        assert problem is not None
        self._names = list(problem.tensors())
        self.theta = list(problem.tensors().values())
        # logits, probabilities and their cotangents, and two of the size of W
        logits = problem.x[..., :1].numel() * problem.c * problem.dtype.itemsize
        self.tape_bytes = 8 * logits + 2 * self.start.w[0].nbytes
        self._relied = captures.Relied([] if problem.y.is_floating_point() else [problem.y])
        self.gradient_map = GradientMap(self._loss)

    def _prepare_callable(self) -> None:
        call = self._call
        leaves, self._hspec = pytree.tree_flatten(call.hparams)
        self._hleaves = leaves
        self._hindex = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
        self._captured: tuple[Tensor, ...] = ()
        own, probe = self._probe(self.start.w, [leaves[i] for i in self._hindex])
        value, seen = captures.find(probe, own, call.device)
        _check_loss(value)
        _check_capture(call.inner, seen)
        self._captured = seen.tensors
        self.theta = [leaves[i] for i in self._hindex] + list(seen.tensors)
        self.tape_bytes = 4 * seen.made_bytes
        self._relied = seen.relied
        self.gradient_map = GradientMap(self._loss, seen.nested)

    def _probe(self, w: Sequence[Tensor], hparams: Sequence[Tensor]) -> tuple[Tensors, Callable[[], Tensor]]:
        """New leaves of the arguments of a callable, and the loss on them."""
        own = [x.detach().requires_grad_() for x in (*w, *hparams)]
        split = len(w)
        return own, lambda: self._evaluate(own[:split], own[split:])

    def _loss(self, w: Tensors, theta: Tensors) -> Tensor:
        problem = self._call.problem
        if problem is not None:
            return problem.with_tensors(dict(zip(self._names, theta, strict=True)))(w[0]).sum()
        split = len(self._hindex)
        with captures.Substitute(self._captured, theta[split:]):
            return self._evaluate(w, theta[:split])

    def _evaluate(self, w: Tensors, hparams: Tensors) -> Tensor:
        parameters = pytree.tree_unflatten(w, self.spec)
        inner: Any = self._call.inner
        if self._call.hparams is None:
            return inner(parameters)  # type: ignore[no-any-return]
        leaves = list(self._hleaves)
        for i, value in zip(self._hindex, hparams, strict=True):
            leaves[i] = value
        return inner(parameters, pytree.tree_unflatten(leaves, self._hspec))  # type: ignore[no-any-return]

    def inspect(self, value: Tensor, leaves: Tensors) -> None:
        """Raise where the graph of a loss holds a tensor that asks for gradients and that the first pass missed."""
        if self._call.problem is not None:
            return
        foreign, once = captures.inspect_graph(value, leaves)
        if once:
            self.gradient_map.use_forward_mode(f"{', '.join(once)}: once_differentiable")
        if foreign:
            raise ValueError(
                f"inner uses {captures.describe(self._call.inner, foreign)} in a way that hides it from pybilevel (a "
                "custom autograd.Function, a compiled body, or a branch not taken at first), so its gradient would be "
                "lost: pass it through hparams, or detach it"
            )


def _check_loss(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"inner must return a tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"inner must return one floating number, got shape {list(value.shape)} {value.dtype}: "
            "add .mean() or .sum()"
        )


def _check_capture(inner: Any, seen: captures.Capture) -> None:
    if seen.random:
        raise NotImplementedError(
            "inner draws random numbers (dropout?), whose replay is not in this version: "
            "call .eval() on the module, or draw them outside and pass them through hparams"
        )
    if seen.mutated:
        raise NotImplementedError(
            f"inner changes {captures.describe(inner, seen.mutated)} in place (running statistics of BatchNorm?), "
            "and pb.ModuleLoss is not in this version: call .eval(), or use track_running_stats=False"
        )
