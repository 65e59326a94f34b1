"""The inner loss of a callable as one function of flat tensors, (w, theta, moment) -> number."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine import captures
from pybilevel.engine.call import Call
from pybilevel.engine.compiled import compiled, is_compiled, uncompiled
from pybilevel.engine.formulas import SAME
from pybilevel.engine.iterate import Moment, Tensors
from pybilevel.engine.loss_checks import check_changed, check_first, check_mutated, check_value
from pybilevel.engine.randomness import Streams
from pybilevel.engine.tasks import check_batch
from pybilevel.engine.trees import builder
from pybilevel.ops import plain_graph
from pybilevel.problems import ModuleLoss

Bound = Callable[[Sequence[Tensor], Moment], Tensor]


class First(NamedTuple):
    """The graph of a first pass through a loss, at t = 0: its value, and the leaves w and theta that it hangs on."""

    value: Tensor
    w: Tensors
    theta: Tensors


class CallableLoss:
    """loss(w), loss(w, hparams), loss(w, batch) or loss(w, hparams, batch), and the tensors that it captures.

    theta is: the floating leaves of hparams, the captured tensors, the learnable leaves of batches. Attributes as
    those of `ProblemLoss`. With tasks, the loss is mapped over them and summed, so that one gradient serves all.
    """

    def __init__(self, call: Call, w: Sequence[Tensor], spec: pytree.TreeSpec, keep_first: bool) -> None:
        self._inner: Callable[..., Tensor] = call.inner
        self._batches = call.batches
        self._build = builder(spec)
        self._no_hparams = call.hparams is None
        self._leaves, hspec = pytree.tree_flatten(call.hparams)
        self._build_hparams = builder(hspec)
        self._places = [
            i for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.is_floating_point()
        ]
        self._tasks = call.mapped
        self._captured: tuple[Tensor, ...] = ()
        self._compiled = False
        self._kinds: set[str] = set()
        self._first: tuple[Tensor, Tensors] | None = None
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
            self._look(call, w, [*hparams, *(x[0] for x in learnable)], keep_first)
        self.theta: Tensors = [*hparams, *self._captured, *learnable]

    def __call__(self, w: Tensors, theta: Tensors, moment: Moment) -> Tensor:
        first, last = len(self._places), len(theta) - self.stacks
        others = [(a, b) for a, b in zip(self._captured, theta[first:last], strict=True) if a is not b]
        if not others:  # the mode costs some microseconds a torch call
            return self._evaluate(w, theta[:first], theta[last:], moment)
        with captures.Substitute(*zip(*others, strict=True)):
            return self._evaluate(w, theta[:first], theta[last:], moment)

    def bound(self, theta: Tensors) -> Bound:
        """This loss as a function of w and the moment, within `held_uncompiled`: what `__call__` asks at every step is
        asked once.
        """
        first, last = len(self._places), len(theta) - self.stacks
        itself = all(a is b for a, b in zip(self._captured, theta[first:last], strict=True))
        if not itself or self.stacks or self.carried or self._tasks is not None:
            return lambda w, moment: self(list(w), theta, moment)
        inner, arguments, batches = self._inner, self._arguments, self._batches
        leaves = self._filled(theta[:first])
        if batches is not None:
            return lambda w, moment: inner(*arguments(w, leaves, batches.at(moment.t)))
        return lambda w, moment: inner(*arguments(w, leaves, None))

    def first_graph(self, theta: Tensors) -> First | None:
        """The graph of the first pass, once, where that is what `bound(leaves)` would give at t = 0; then `leaves` are
        its theta. `theta` are the differentiable inputs.
        """
        first, self._first = self._first, None
        captured = self.direct()[len(self._places) :]
        if first is None or any(x is None for x in captured):
            return None
        value, own = first
        split = len(own) - len(self._places)
        given = own[split:]
        if not all(x.requires_grad for x in theta[: len(given)]):
            return None
        return First(value, own[:split], [*given, *(x for x in captured if x is not None)])

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
        if self._kinds and plain_graph(value, known):  # kinds are asked of the first step alone
            return []
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

    def check_changed(self) -> None:
        """Raise if a tensor that the loss uses was changed in place since the forward half."""
        check_changed(self._inner, self._relied)

    def check_replay(self, w: Sequence[Tensor], theta: Tensors) -> None:
        """Raise if the loss has other data than in the forward half; it is evaluated once more, at t = 0, on these."""
        self.check_changed()
        first, last = len(self._places), len(theta) - self.stacks
        own, probe = self._probe(w, [*theta[:first], *theta[last:]])
        check_first(self._inner, self._relied, probe, own)

    def _look(self, call: Call, w: Sequence[Tensor], given: Tensors, keep_first: bool) -> None:
        """One pass through the loss at t = 0, which finds what it captures."""
        own, probe = self._probe(w, given)
        value, seen = captures.find(probe, own, call.device)
        check_value(value)
        check_mutated(call.inner, seen)
        self._captured = seen.tensors
        self.nested = seen.nested
        self.tape_bytes = 4 * seen.made_bytes
        self._relied = seen.relied
        self.streams = streams_of(call, seen)
        self.carried = (*self.streams.start, *self.carried)
        if is_compiled(call.inner) and not self.carried and self._tasks is None:
            self._look_inside(w, given)
            self._compiled = True
        if self.streams.elsewhere:
            with torch.enable_grad(), self.streams.undisturbed():
                self._relied.expect(self._probe(w, given)[1]())
        if self._batches is not None:
            self._relied.also(self._batches.held)
        if keep_first and not (self.carried or self.nested or self.stacks or self._compiled):
            # autocast's cache of casts would keep the parameters
            self._first = None if torch.is_autocast_enabled(call.device.type) else (value, own)

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
        return own, lambda: self._evaluate_first(own, len(w))

    def _evaluate_first(self, own: Tensors, count: int) -> Tensor:
        """The loss at t = 0 on `count` leaves of w, then hparams and the parts of a batch."""
        last = len(own) - self.stacks
        return self._evaluate(own[:count], own[count:last], own[last:], Moment(0, self.carried))

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
        leaves = self._filled(hparams)
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
        arguments = self._arguments(w, leaves, batch)
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

    def _filled(self, hparams: Tensors) -> list[Any]:
        """The leaves of hparams with these for those that are differentiated."""
        leaves = list(self._leaves)
        for i, leaf in zip(self._places, hparams, strict=True):
            leaves[i] = leaf
        return leaves

    def _arguments(self, w: Sequence[Tensor], leaves: Sequence[Any], batch: Any) -> list[Any]:
        """What the loss is called with. Containers are new every time: it may change them."""
        arguments = [self._build(w)]
        if not self._no_hparams:
            arguments.append(self._build_hparams(leaves))
        if self._batches is not None:
            arguments.append(batch)
        return arguments


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


def streams_of(call: Call, seen: captures.Capture) -> Streams:
    """The generators that a first pass has seen, where the call goes on with them."""
    return Streams(seen.generators, seen.untouched, () if call.state is None else call.state.random)
