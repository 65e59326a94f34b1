"""The inner loss of a call as one function of flat tensors, (w, theta, moment) -> number, for the generic engine."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine import captures
from pybilevel.engine.batches import rows
from pybilevel.engine.call import Call
from pybilevel.engine.compiled import compiled, is_compiled, uncompiled
from pybilevel.engine.formulas import SAME
from pybilevel.engine.iterate import Moment, Tensors
from pybilevel.engine.loss_checks import check_changed, check_first, check_mutated, check_value
from pybilevel.engine.randomness import Streams
from pybilevel.engine.tasks import check_batch
from pybilevel.problems import ModuleLoss, Problem


class ProblemLoss:
    """The loss of a fused problem, summed over its tasks: on all its rows, or on those of a batch.

    Attributes:
        theta: the differentiable inputs, whole.
        stacks: how many of them, at the end, have a leading steps axis.
        carried: what the iterate 0 carries.
        streams: the random generators it draws from.
        nested: whether the loss differentiates itself.
        tape_bytes: an estimate of what one step's gradient and its pullback hold.
    """

    stacks = 0
    nested = False

    def __init__(self, call: Call, problem: Problem, spec: pytree.TreeSpec) -> None:
        self._problem = problem
        self._spec = spec
        self._batches = call.batches
        self._names = list(problem.tensors())
        self.theta: Tensors = list(problem.tensors().values())
        self.streams = Streams()
        self._relied = captures.Relied([] if problem.y.is_floating_point() else [problem.y])
        n = problem.n
        if self._batches is not None and call.steps:
            # a function of the step may draw its rows: then they are replayed
            index, seen = captures.find(lambda: self._rows(problem, Moment()), (), problem.device)
            n = index.shape[-1]
            self.streams = _streams(call, seen)
            self._relied.also(self._batches.held)
            self._first = seen.relied
            if self.streams.elsewhere:
                with self.streams.undisturbed():
                    self._first.expect(self._rows(problem, Moment(0, self.streams.start)))
        self.carried = self.streams.start
        # what the model makes of the examples (logits, probabilities) and cotangents, and two of the size of w
        each = problem.x[..., :1, :1].numel() * problem.dtype.itemsize
        self.tape_bytes = each * (8 * n * problem.units + 2 * problem.parameters)

    def __call__(self, w: Tensors, theta: Tensors, moment: Moment) -> Tensor:
        problem = self._problem.with_tensors(dict(zip(self._names, theta, strict=True)))
        if self._batches is not None:
            problem = problem.take(self._rows(problem, moment))
        return problem(pytree.tree_unflatten(w, self._spec)).sum()

    def one_formula(self) -> bool:
        """Whether gradients are known to have the same bits with a graph as without."""
        return False

    def direct(self) -> list[Tensor | None]:
        """None of its theta may be given itself."""
        return []

    def forward_only(self, w: Tensors, theta: Tensors, moment: Moment) -> Tensor:
        """The loss where no gradient but that in w is asked for."""
        return self(w, theta, moment)

    def module_buffers(self, carried: Sequence[Tensor]) -> dict[str, Tensor]:
        """A problem has no module."""
        return {}

    def inspect(self, value: Tensor, leaves: Tensors) -> list[str]:
        """A problem hides nothing."""
        return []

    def check_replay(self, w: Sequence[Tensor], theta: Tensors, kept: bool) -> None:
        """Raise if the data changed between forward and backward."""
        check_changed(self._problem, self._relied)
        if self._batches is not None:
            check_first(
                self._problem, self._first, lambda: self._rows(self._problem, Moment(0, self.carried)), ()
            )

    def _rows(self, problem: Problem, moment: Moment) -> Tensor:
        assert self._batches is not None
        self.streams.write(moment.before)
        index = rows(self._batches, problem, moment.t)
        moment.after = self.streams.read()
        return index


class CallableLoss:
    """loss(w), loss(w, hparams), loss(w, batch) or loss(w, hparams, batch), and the tensors that it captures.

    theta is: the floating leaves of hparams, the captured tensors, the learnable leaves of batches. Attributes as
    those of `ProblemLoss`. With tasks, the loss is mapped over them and summed, so that one gradient serves all.
    """

    def __init__(self, call: Call, w: Sequence[Tensor], spec: pytree.TreeSpec) -> None:
        self._inner: Callable[..., Tensor] = call.inner
        self._batches = call.batches
        self._spec = spec
        self._no_hparams = call.hparams is None
        self._leaves, self._hspec = pytree.tree_flatten(call.hparams)
        self._places = [
            i for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.is_floating_point()
        ]
        self._tasks = call.mapped
        self._captured: tuple[Tensor, ...] = ()
        self._compiled = False
        self._kinds: set[str] = set()
        self.streams = Streams()
        self._module_buffers = _start_buffers(call)
        self.carried = tuple(self._module_buffers.values())
        self.nested = False
        self.tape_bytes = 0
        hparams = [self._leaves[i] for i in self._places]
        learnable = [] if self._batches is None else self._batches.learnable
        self.stacks = len(learnable)
        # without a step there need not be a batch to call the loss on
        if self._batches is None or call.steps:
            self._look(call, w, [*hparams, *(x[0] for x in learnable)])
        self.theta: Tensors = [*hparams, *self._captured, *learnable]

    def __call__(self, w: Tensors, theta: Tensors, moment: Moment) -> Tensor:
        first, last = len(self._places), len(theta) - self.stacks
        others = [(a, b) for a, b in zip(self._captured, theta[first:last], strict=True) if a is not b]
        if not others:  # the mode costs some microseconds a torch call
            return self._evaluate(w, theta[:first], theta[last:], moment)
        with captures.Substitute(*zip(*others, strict=True)):
            return self._evaluate(w, theta[:first], theta[last:], moment)

    def one_formula(self) -> bool:
        """Whether gradients are known to have the same bits with a graph as without, from what was inspected."""
        return bool(self._kinds) and self._kinds <= SAME and not self._compiled

    def direct(self) -> list[Tensor | None]:
        """For each theta, the tensor that the loss may be given for it itself: a captured leaf, or None.

        What hooks a tensor has would run on the gradient of every step, and a captured tensor with a graph may be
        made of another one.
        """
        before, behind = len(self._places), self.stacks
        own = [x if x.is_leaf and not x._backward_hooks else None for x in self._captured]
        return [*[None] * before, *own, *[None] * behind]

    def forward_only(self, w: Tensors, theta: Tensors, moment: Moment) -> Tensor:
        """The loss where no gradient but that in w is asked for: compiled, if it was given so and can be."""
        if not self._compiled:
            return self(w, theta, moment)
        first, last = len(self._places), len(theta) - self.stacks
        return self._evaluate(w, theta[:first], theta[last:], moment, compiled)

    def inspect(self, value: Tensor, leaves: Tensors) -> list[str]:
        """Looks at the graph of a value. ValueError if a tensor enters it that the first pass did not see.

        Returns:
            The custom functions in it whose second backward is missing.
        """
        # where a compiled loss runs, it still takes the captured tensors themselves
        known = [*leaves, *self._captured] if self._compiled else leaves
        foreign, once, kinds = captures.inspect_graph(value, known)
        self._kinds.update(kinds)
        if foreign:
            raise ValueError(
                f"inner uses {captures.describe(self._inner, foreign)} in a way that hides it from pybilevel (a "
                "custom autograd.Function, a compiled body, a branch not taken at first, or the batch that a function "
                "gives for a later step), so its gradient would be lost: pass it through hparams or a list of "
                "batches, or detach it"
            )
        return once

    def check_replay(self, w: Sequence[Tensor], theta: Tensors, kept: bool) -> None:
        """Raise if the loss has other data than in the forward half; it is evaluated once more, at t = 0.

        Args:
            w, theta: as at t = 0.
            kept: the same value is enough, since graphs are kept.
        """
        check_changed(self._inner, self._relied)
        first, last = len(self._places), len(theta) - self.stacks
        own, probe = self._probe(w, [*theta[:first], *theta[last:]])
        if kept:
            with torch.set_grad_enabled(self.nested):
                if self._relied.expected(probe):
                    return
        check_first(self._inner, self._relied, probe, own)

    def _look(self, call: Call, w: Sequence[Tensor], given: Tensors) -> None:
        """One pass through the loss at t = 0, which finds what it captures."""
        own, probe = self._probe(w, given)
        value, seen = captures.find(probe, own, call.device)
        check_value(value)
        check_mutated(call.inner, seen)
        self._captured = seen.tensors
        self.nested = seen.nested
        self.tape_bytes = 4 * seen.made_bytes
        self._relied = seen.relied
        self.streams = _streams(call, seen)
        self.carried = (*self.streams.start, *self.carried)
        if is_compiled(call.inner) and not self.carried and self._tasks is None:
            self._look_inside(w, given)
            self._compiled = True
        if self.streams.elsewhere:
            with torch.enable_grad(), self.streams.undisturbed():
                self._relied.expect(self._probe(w, given)[1]())
        if self._batches is not None:
            self._relied.also(self._batches.held)

    def _look_inside(self, w: Sequence[Tensor], given: Tensors) -> None:
        """Inspects the graph of the code that a compiled loss was made of."""
        first = len(given) - self.stacks
        leaves = [x.detach().requires_grad_() for x in (*w, *given[:first], *self._captured, *given[first:])]
        with torch.enable_grad():
            value = self(leaves[: len(w)], leaves[len(w) :], Moment())
        self.inspect(value, leaves)

    def _probe(self, w: Sequence[Tensor], given: Tensors) -> tuple[Tensors, Callable[[], Tensor]]:
        """New leaves of the arguments at t = 0, and the loss on them; `given` are hparams and the parts of a batch."""
        own = [x.detach().requires_grad_() for x in (*w, *given)]
        first, last = len(w), len(own) - self.stacks
        return own, lambda: self._evaluate(own[:first], own[first:last], own[last:], Moment(0, self.carried))

    def module_buffers(self, carried: Sequence[Tensor]) -> dict[str, Tensor]:
        """The buffers of the module among what an iterate carries, by name."""
        return dict(zip(self._module_buffers, carried[len(self.streams) :], strict=True))

    def _evaluate(
        self,
        w: Tensors,
        hparams: Tensors,
        parts: Tensors,
        moment: Moment,
        stance: Callable[[], AbstractContextManager[Any]] = uncompiled,
    ) -> Tensor:
        """The loss, summed over tasks, with the draws and buffers of the moment; leaves there what comes after."""
        self.streams.write(moment.before[: len(self.streams)])
        buffers = (moment.before or self.carried)[len(self.streams) :]
        leaves = list(self._leaves)
        for i, leaf in zip(self._places, hparams, strict=True):
            leaves[i] = leaf
        batch = None if self._batches is None else self._batches.at(moment.t, parts)
        with stance():
            if self._tasks is None:
                value, after = self._one(w, leaves, batch, buffers)
            else:
                if self._batches is not None and self._batches.lazy:
                    check_batch(batch, self._tasks.size, moment.t)
                values, after = self._tasks.map(self._one, w, leaves, batch, buffers)
                value = values.sum()
        moment.after = (*self.streams.read(), *after)
        return value

    def _one(
        self, w: Sequence[Tensor], leaves: list[Any], batch: Any, buffers: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss (of one task, where there are tasks), and the buffers of its module afterwards."""
        arguments: list[Any] = [pytree.tree_unflatten(w, self._spec)]
        if not self._no_hparams:
            arguments.append(pytree.tree_unflatten(leaves, self._hspec))
        if self._batches is not None:
            arguments.append(batch)
        after: dict[str, Tensor] = {}
        if self._module_buffers:
            assert isinstance(self._inner, ModuleLoss)
            named = dict(zip(self._module_buffers, buffers, strict=True))
            value, after = self._inner.run(arguments[0], named, *arguments[1:])
        else:
            value = self._inner(*arguments)
        if self._tasks is not None:
            check_value(value)
            value = value.reshape(())
        return value, list(after.values())


def _start_buffers(call: Call) -> dict[str, Tensor]:
    """The buffers that the module of a call carries along: those of its state, or its own."""
    own = call.inner.buffers() if isinstance(call.inner, ModuleLoss) else {}
    found = {} if call.state is None else call.state.module_buffers
    if found and own and found.keys() != own.keys():
        raise ValueError(
            f"state has the buffers {', '.join(found)} but the module of inner {', '.join(own)}: go on with the same "
            "module, or pass w0=state.w"
        )
    if call.mapped is not None and not found:
        own = {name: buffer.expand(call.mapped.size, *buffer.shape) for name, buffer in own.items()}
    return {name: found.get(name, buffer).detach().clone() for name, buffer in own.items()}


def _streams(call: Call, seen: captures.Capture) -> Streams:
    return Streams(call.device, seen.generators, () if call.state is None else call.state.random)
