"""What an unroll hands to the next one: unroll(a + b) = unroll(b, state=unroll(a))."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine.tangents import Tangents
from pybilevel.optimizers import Buffers, Optimizer, from_torch
from pybilevel.optimizers.bridge import give_buffers, parameters_of, taken_buffers


@dataclass
class State:
    """The state of the inner dynamics after some steps; part of the graph until `detach` is called.

    Attributes:
        w: the parameters, the pytree of w0.
        buffers: the optimizer's buffers, one tuple a leaf of `w`.
        step: how many inner steps led here, over all calls.
        optimizer: the name of the optimizer that the buffers belong to.
        random: the states of the random generators that the inner loss draws from, if it does: a run that goes on from
            here draws what an uninterrupted one would have drawn.
        module_buffers: those of the module of a `pb.ModuleLoss(buffers="carry")`, by name; no part of the graph.
        info: what a method reports (`pb.Implicit`: residuals, ...) once its backward has run; detached copies share it.
        tangents: those of `pb.Forward`, with which the next call goes on; None elsewhere.
    """

    w: Any
    buffers: tuple[Buffers, ...]
    step: int
    optimizer: str
    info: dict[str, Any] = field(default_factory=dict)
    random: tuple[Tensor, ...] = ()
    tangents: Tangents | None = None
    module_buffers: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> "State":
        """The same values, cut from the graph and without tangents: truncation across outer steps."""
        return replace(
            self,
            w=pytree.tree_map(_detach, self.w),
            buffers=tuple(tuple(b.detach() for b in buffers) for buffers in self.buffers),
            tangents=None,
        )

    def state_dict(self) -> dict[str, Any]:
        """A plain dictionary of detached tensors, names and numbers, for torch.save; tangents are in it."""
        cut = self.detach()
        return {
            "w": cut.w,
            "buffers": cut.buffers,
            "step": cut.step,
            "optimizer": cut.optimizer,
            "info": dict(cut.info),
            "random": cut.random,
            "tangents": None if self.tangents is None else self.tangents.state_dict(),
            "module_buffers": cut.module_buffers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> "State":
        """Take over what `state_dict` gave; returns self. Shapes must agree, or a ValueError says where not."""
        missing = {"w", "buffers", "step", "optimizer"} - state.keys()
        if missing:
            raise ValueError(
                f"state dict lacks {', '.join(sorted(missing))}: make it with State.state_dict()"
            )
        if state["optimizer"] != self.optimizer:
            raise ValueError(
                f"state dict is of optimizer {state['optimizer']!r}, this state of {self.optimizer!r}"
            )
        mine, theirs = _shapes(self.w, self.buffers), _shapes(state["w"], state["buffers"])
        if mine != theirs:
            raise ValueError(f"state dict has shapes {theirs}, this state {mine}: load it where it was made")
        self.w, self.step = state["w"], int(state["step"])
        self.buffers = tuple(tuple(b) for b in state["buffers"])
        self.info = dict(state.get("info", {}))
        self.random = tuple(state.get("random", ()))
        tangents = state.get("tangents")
        self.tangents = None if tangents is None else Tangents.from_state_dict(tangents)
        self.module_buffers = dict(state.get("module_buffers", {}))
        return self

    @classmethod
    def from_torch(cls, optimizer: torch.optim.Optimizer, w0: Any) -> "State":
        """The state of a torch.optim instance, to go on from with `pb.from_torch(optimizer, w0)`.

        Args:
            optimizer: one that `pb.from_torch` takes. Its buffers are copied; parameters that it has not stepped yet
                start afresh.
            w0: the parameters, which the state takes as they are: some or all of those of `optimizer`; or other
                tensors, then one for each of its parameters, in their order.

        Raises:
            TypeError, ValueError: as of `pb.from_torch`.
        """
        ours = from_torch(optimizer, w0)
        parameters = parameters_of(optimizer, w0)
        found = [optimizer.state.get(p, {}) for p in parameters]
        buffers = tuple(
            taken_buffers(ours, leaf.detach(), state)
            for leaf, state in zip(pytree.tree_leaves(w0), found, strict=True)
        )
        step = max((int(state.get("step", 0)) for state in found), default=0)
        return cls(w=w0, buffers=buffers, step=step, optimizer=ours.name)

    def to_torch(self, optimizer: torch.optim.Optimizer, w0: Any = None) -> None:
        """Copies w and buffers into a torch.optim instance and its parameters, in place, as if it had made the steps.

        Args:
            optimizer: one that `pb.from_torch` takes, of the kind of this state.
            w0: its parameters in the structure of w, as given to `from_torch`; None: all of them, in their order.

        Raises:
            ValueError: kind or number of buffers differ, or w does not fit the parameters; nothing is copied then.
        """
        ours = from_torch(optimizer, self.w if w0 is None else w0)
        self.check(ours)
        parameters = parameters_of(optimizer, self.w if w0 is None else w0)
        leaves = pytree.tree_leaves(self.w)
        shapes = [[list(x.shape) for x in tensors] for tensors in (leaves, parameters)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"state has the shapes {shapes[0]} but the parameters of optimizer have {shapes[1]}"
            )
        with torch.no_grad():
            for leaf, parameter, buffers in zip(leaves, parameters, self.buffers, strict=True):
                parameter.copy_(leaf)
                give_buffers(ours, optimizer, parameter, buffers, self.step)

    def check(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless `optimizer` can go on from here."""
        if self.optimizer != optimizer.name:
            raise ValueError(
                f"state is of optimizer {self.optimizer!r} but optimizer is {optimizer.name!r}: "
                "pass the same kind, or w0=state.w to start its buffers afresh"
            )
        for leaf, buffers in zip(pytree.tree_leaves(self.w), self.buffers, strict=True):
            expected = len(optimizer.init(leaf))
            if expected != len(buffers):
                raise ValueError(
                    f"state holds {len(buffers)} buffers a parameter but this {optimizer.name} keeps {expected} "
                    "(a momentum of the number 0 keeps none): pass momentum as a tensor in both calls, or w0=state.w"
                )


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _shapes(w: Any, buffers: Any) -> list[list[int]]:
    return [list(leaf.shape) for leaf in pytree.tree_leaves((w, buffers))]
