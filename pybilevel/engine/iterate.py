"""The state of the inner dynamics between two steps, and the moment at which a loss is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pybilevel.optimizers import Buffers

Tensors = list[Tensor]


@dataclass(frozen=True)
class Iterate:
    """Parameters, one tensor a leaf; the optimizer's buffers, one tuple a leaf; and what travels undifferentiated.

    Attributes:
        w: the parameters.
        buffers: the optimizer's buffers of each.
        carried: tensors that the loss reads and replaces at every step and that carry no gradient: the states of the
            random generators it draws from, and the buffers of its module.
    """

    w: tuple[Tensor, ...]
    buffers: tuple[Buffers, ...]
    carried: tuple[Tensor, ...] = ()

    @staticmethod
    def like(template: "Iterate", flat: Sequence[Tensor]) -> "Iterate":
        """The inverse of `flat`, for an iterate with as many tensors as `template`, and what that carries."""
        rest = iter(flat)
        w = tuple(next(rest) for _ in template.w)
        buffers = tuple(tuple(next(rest) for _ in buffers) for buffers in template.buffers)
        return Iterate(w, buffers, template.carried)

    def flat(self) -> Tensors:
        """What is differentiated: w, then the buffers leaf by leaf."""
        return [*self.w, *(b for buffers in self.buffers for b in buffers)]

    def detach(self) -> "Iterate":
        """The same values without a graph."""
        return Iterate.like(self, [x.detach() for x in self.flat()])

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors: what a slot holds."""
        return sum(x.nbytes for x in (*self.flat(), *self.carried))


@dataclass
class Moment:
    """When and with what a loss is evaluated; the evaluation leaves there what is carried on.

    Attributes:
        t: the step of this call.
        before: what the iterate t carries.
        after: what the iterate t + 1 carries, once the loss was evaluated.
    """

    t: int = 0
    before: tuple[Tensor, ...] = ()
    after: tuple[Tensor, ...] = ()
