"""The inner loss of a fused problem as one function of flat tensors, (w, theta, moment) -> number."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.engine import captures
from pybilevel.engine.batches import rows
from pybilevel.engine.call import Call
from pybilevel.engine.iterate import Moment, Tensors
from pybilevel.engine.loss_checks import check_changed, check_first
from pybilevel.engine.losses import Bound, streams_of
from pybilevel.engine.randomness import Streams
from pybilevel.problems import Problem


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
        self._relied = captures.Relied()
        self._relied.also([] if problem.y.is_floating_point() else [problem.y])
        n = problem.n
        if self._batches is not None and call.steps:
            # a function of the step may draw its rows: then they are replayed
            index, seen = captures.find(lambda: self._rows(problem, Moment()), (), problem.device)
            n = index.shape[-1]
            self.streams = streams_of(call, seen)
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

    def bound(self, theta: Tensors) -> Bound:
        """This loss as a function of w and the moment."""
        return lambda w, moment: self(list(w), theta, moment)

    def one_formula(self) -> bool:
        """Whether gradients are known to have the same bits with a graph as without."""
        return False

    def first_graph(self, theta: Tensors) -> None:
        """None of its graphs is kept from the first pass."""

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

    def check_changed(self) -> None:
        """Raise if the data was changed in place since the forward half."""
        check_changed(self._problem, self._relied)

    def check_replay(self, w: Sequence[Tensor], theta: Tensors) -> None:
        """Raise if the data changed between forward and backward."""
        self.check_changed()
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
