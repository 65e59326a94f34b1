"""Whether two tensors are one variable: tangents in the first are tangents in the second."""

from typing import Any

from torch import Tensor

_VIEWS = ("ToCopy", "View", "ReshapeAlias", "Unsqueeze", "Alias")
_MAPS = ("Exp", "Log", "Sigmoid", "Logit", "Softplus", "Tanh", "Sqrt", "Neg", "Clamp", "ClampMax", "ClampMin")
_AFFINE = ("Add", "Sub", "Rsub", "Mul", "Div")


def key(x: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are one variable. Valid while one of them lives; ask while its graph is there.

    They are if they are the same object, or of the same shape and made of the same leaf by the same chain of whole
    views, casts, maps of one number (exp, sigmoid, ...) and affine maps with a number: what `resolve` makes of a
    setting in every call, and a constrained hyperparameter that is computed anew. Anything else is a variable of its
    own.
    """
    chain: list[tuple[Any, ...]] = []
    node: Any = x.grad_fn
    while node is not None and not hasattr(node, "variable"):
        step = _step(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if step is None or len(parents) != 1:
            return (id(x),)
        chain.append(step)
        node = parents[0]
    leaf = x if node is None else node.variable
    return (id(leaf), tuple(x.shape), *(step for step in chain if step[0] not in _VIEWS))


def _step(node: Any) -> tuple[Any, ...] | None:
    """The operation of a node and its constants; None if it is none of those that a key is made of."""
    name = node.name().partition("Backward")[0]
    if name in _VIEWS:
        return (name,)
    if name not in _MAPS + _AFFINE:
        return None
    constants: list[tuple[str, Any]] = []
    for attribute in sorted(a for a in dir(node) if a.startswith("_saved_")):
        try:
            value = getattr(node, attribute)
        except RuntimeError:  # a backward has freed it
            return None
        if isinstance(value, Tensor) and name in _AFFINE:
            if value.numel() != 1 or value.requires_grad:
                return None
            value = value.item()
        if not isinstance(value, Tensor):  # that of a map is its own argument or result
            constants.append((attribute, value))
    return name, *constants
