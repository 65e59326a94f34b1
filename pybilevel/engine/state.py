"""What an unroll hands to the next one: unroll(a + b) = unroll(b, state=unroll(a))."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.optimizers import Buffers, Optimizer


@dataclass
class State:
    """The state of the inner dynamics after some steps; part of the graph until `detach` is called.

    Attributes:
        w: the parameters, the pytree of w0.
        buffers: the optimizer's buffers, one tuple a leaf of `w`.
        step: how many inner steps led here, over all calls.
        optimizer: the name of the optimizer that the buffers belong to.
        info: what a method reports (residuals, ...).
    """

    w: Any
    buffers: tuple[Buffers, ...]
    step: int
    optimizer: str
    info: dict[str, Any] = field(default_factory=dict)

    def detach(self) -> "State":
        """The same values, cut from the graph: truncation across outer steps."""
        return replace(
            self,
            w=pytree.tree_map(_detach, self.w),
            buffers=tuple(tuple(b.detach() for b in buffers) for buffers in self.buffers),
            info=dict(self.info),
        )

    def state_dict(self) -> dict[str, Any]:
        """A plain dictionary of detached tensors and numbers, for torch.save."""
        cut = self.detach()
        return {
            "w": cut.w,
            "buffers": cut.buffers,
            "step": cut.step,
            "optimizer": cut.optimizer,
            "info": cut.info,
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
        return self

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
