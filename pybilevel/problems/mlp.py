"""The multilayer perceptron: affine maps with an activation between them, one network a task."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pybilevel.checks import LOW_PRECISION, check_floating
from pybilevel.problems.activations import ACTIVATIONS, Activation
from pybilevel.problems.labels import check_y, dense_targets
from pybilevel.problems.problem import Problem, Reduction, check_x
from pybilevel.problems.row_losses import cross_entropy, half_squared_error

Loss = Literal["squared_error", "cross_entropy"]
MAX_LAYERS = 8
_ROW_LOSSES = {"squared_error": ("squared", half_squared_error), "cross_entropy": ("softmax", cross_entropy)}


class MLP(Problem):
    """A multilayer perceptron, trained on a row loss.

        L(w) = (1/n) sum_i weights_i loss(net(w, x_i), y_i) + l2/2 sum_l |W_l|^2
        net(w, x) = a_(L-1) W_L + b_L,   a_l = activation(a_(l-1) W_l + b_l),   a_0 = x

    The parameters w are a pytree whose leaves are W_1, b_1, ..., W_L, b_L in this order, such as [(W_1, b_1), ...]:
    W_l [*B, sizes[l-1], sizes[l]] and b_l [*B, sizes[l]]. W_l is the transpose of torch.nn.Linear's weight: pass
    weight.mT; where W_l is square nothing tells the two apart, so a forgotten .mT is no error. Initial ones may leave
    out *B (decided by the number of axes): all tasks then start from them, as in MAML. Zeros do not train, so w0 must
    be given: `pb.MLP.init(sizes)`.

    Args:
        x: inputs [*B, n, sizes[0]]; leading dimensions are tasks.
        y: targets [*B, n, c], or integer classes [*B, n], c = sizes[-1]; for squared_error also [*B, n] (c = 1).
        sizes: the widths, from the inputs to the outputs, such as (1, 40, 40, 1): 2 to 9 of them.
        activation: "relu", "tanh", "sigmoid", "softplus" or "elu", after every layer but the last.
        loss: "squared_error" (half of it, summed over outputs) or "cross_entropy" (of the softmax; soft labels too).
        weights: example weights [*B, n], >= 0; None: ones. Weight 0 pads ragged tasks.
        l2: regularisation, a number, () or [*B], >= 0; the biases are not regularised.
        reduction: "mean" (1/n) or "sum".

    Cost, a task with P parameters: 6 n P operations a step, and 12 to 18 n P a step back. Memory: the fused kernels
    keep w and, where they are not made again, n activations of every unit (and on the CPU as many derivatives, but for
    the last hidden layer) for each stored step.

    Raises:
        ValueError: shapes, devices, sizes that do not go with x and y, labels outside [0, c), negative or non-finite
            weights or l2 (values on CPU only), an unknown activation or loss.
        TypeError: dtypes that are not floating, or that differ from that of x.

    Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, section 5.1 (1-40-40-1).
    """

    formative = ("sizes", "activation")

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        sizes: Sequence[int],
        activation: Activation = "relu",
        loss: Loss = "squared_error",
        weights: Tensor | None = None,
        l2: float | Tensor = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        check_x(x)
        self.sizes = check_sizes(sizes)
        if x.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"sizes[0] is {self.sizes[0]} but x has {x.shape[-1]} features: make them the same"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if loss not in _ROW_LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_ROW_LOSSES)}, got {loss!r}")
        self.activation = activation
        self.loss, self._row_losses = _ROW_LOSSES[loss]
        y = self._targets(y, x)
        super().__init__(x, y, self.sizes[-1], weights, l2, reduction)

    def _targets(self, y: Any, x: Tensor) -> Tensor:
        c = self.sizes[-1]
        classes = c if isinstance(y, Tensor) and not y.is_floating_point() else None
        if self.loss == "squared":
            y, found = dense_targets(y, x, classes)
        else:
            found = check_y(y, x, classes)
        if found != c:
            raise ValueError(f"sizes[-1] is {c} but y has {found} columns: make them the same")
        return y  # type: ignore[no-any-return]

    @staticmethod
    def init(
        sizes: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Random parameters [(W [in, out], b [out]), ...] without task dimensions, for w0.

        Distributed as those of torch.nn.Linear: uniform in +-1/sqrt(in). Ask for gradients on them to learn them.

        Args:
            sizes: as in the class.
            generator, dtype, device: as in torch.rand.

        Raises:
            ValueError, TypeError: sizes are not 2 to 9 positive integers.
        """
        widths = check_sizes(sizes)

        def uniform(*shape: int, limit: float) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=dtype, device=device)
            return (2 * drawn - 1) * limit

        pairs = pairwise(widths)
        return [(uniform(i, o, limit=i**-0.5), uniform(o, limit=i**-0.5)) for i, o in pairs]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of W_1, b_1, ..., W_L, b_L without the task dimensions."""
        pairs = pairwise(self.sizes)
        return [shape for i, o in pairs for shape in ((i, o), (o,))]

    @property
    def parameters(self) -> int:
        """P, the scalars of one network."""
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    @property
    def units(self) -> int:
        """Hidden units and outputs."""
        return sum(self.sizes[1:])

    def initial(self, w0: Any = None) -> Any:
        """w0 with the task dimensions where it leaves them out; ValueError for None."""
        leaves, spec = pytree.tree_flatten(self.check_w0(w0) if w0 is None else w0)
        pairs = zip(leaves, self.shapes, strict=True)
        return pytree.tree_unflatten([leaf.expand(*self.tasks, *shape) for leaf, shape in pairs], spec)

    def check_w0(self, w0: Any) -> Any:
        """w0 in the dtype of w, task dimensions as given; ValueError or TypeError where a leaf does not fit."""
        if w0 is None:
            raise ValueError(
                "w0 is None, and zeros would not train a pb.MLP: pass initial parameters, such as "
                f"w0=pb.MLP.init({self.sizes})"
            )
        leaves, spec = pytree.tree_flatten(w0)
        shapes = self.shapes
        if len(leaves) != len(shapes):
            raise ValueError(
                f"w0 has {len(leaves)} leaves but sizes {list(self.sizes)} need {len(shapes)}, a weight and a bias a "
                f"layer: pass w0=pb.MLP.init({self.sizes})"
            )
        found = [self._check_leaf(i, *pair) for i, pair in enumerate(zip(leaves, shapes, strict=True))]
        same = all(ours is given for ours, given in zip(found, leaves, strict=True))
        return w0 if same else pytree.tree_unflatten(found, spec)

    def _check_leaf(self, i: int, leaf: Any, shape: tuple[int, ...]) -> Tensor:
        whole, dtype = (*self.tasks, *shape), self.dtype
        fits = isinstance(leaf, Tensor) and leaf.shape in (shape, whole)
        if fits and leaf.dtype == dtype and leaf.device == self.device:
            return leaf  # type: ignore[no-any-return]
        name = f"leaf {i} of w0 ({'bias' if i % 2 else 'weight'} {i // 2 + 1})"
        check_floating(name, leaf)
        if not fits:
            raise ValueError(
                f"{name} has shape {list(leaf.shape)} but sizes {list(self.sizes)} need {list(whole)}"
                + (f", or {list(shape)} for all tasks" if self.tasks else "")
                + (
                    ": pass weight.mT of a torch.nn.Linear"
                    if leaf.shape[-2:] == shape[::-1] != shape[1:]
                    else ""
                )
            )
        if leaf.device != self.device:
            raise ValueError(
                f"{name} is on {leaf.device} but x is on {self.device}: move one with .to(device)"
            )
        if leaf.dtype not in LOW_PRECISION or dtype != torch.float32:
            raise TypeError(f"{name} is {leaf.dtype} but x is {dtype}: cast one with .to(dtype)")
        return leaf.to(dtype)  # type: ignore[no-any-return]

    def logits(self, w: Any, x: Tensor) -> Tensor:
        """Predictions net(w, x): [*B, m, d] -> [*B, m, c]."""
        leaves = pytree.tree_leaves(w)
        phi = ACTIVATIONS[self.activation]
        for layer in range(0, len(leaves), 2):
            x = _affine(x if layer == 0 else phi(x), leaves[layer], leaves[layer + 1])
        return x

    def regulariser(self, w: Any) -> Tensor:
        """l2/2 sum_l |W_l|^2, without the biases: [*B]."""
        squares: list[Tensor] = [leaf.square().sum((-2, -1)) for leaf in pytree.tree_leaves(w)[::2]]
        return 0.5 * self.l2 * torch.stack(squares).sum(0)

    def row_losses(self, z: Tensor) -> Tensor:
        """The loss of each row: [*B, n, c] -> [*B, n]."""
        return self._row_losses(z, self.y)

    def __repr__(self) -> str:
        return (
            f"MLP(tasks={list(self.tasks)}, n={self.n}, sizes={list(self.sizes)}, activation={self.activation!r}, "
            f"loss={self.loss!r}, reduction={self.reduction!r}, dtype={self.dtype}, device={self.device})"
        )


def check_sizes(sizes: Any) -> tuple[int, ...]:
    """sizes as a tuple; TypeError or ValueError unless they are 2 to MAX_LAYERS + 1 positive integers."""
    widths = tuple(sizes) if isinstance(sizes, Sequence) else ()
    if not widths or not all(isinstance(width, int) and not isinstance(width, bool) for width in widths):
        raise TypeError(
            f"sizes must be integers, the widths from inputs to outputs, such as (1, 40, 1); got {sizes!r}"
        )
    if not 2 <= len(widths) <= MAX_LAYERS + 1 or min(widths) < 1:
        raise ValueError(
            f"sizes must be 2 to {MAX_LAYERS + 1} widths >= 1, got {list(widths)}: for deeper networks pass a callable "
            "loss(w)"
        )
    return widths


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b, as one operation where there is one."""
    bias = bias.unsqueeze(-2)
    return torch.baddbmm(bias, x, weight) if x.ndim == weight.ndim == 3 else x @ weight + bias
