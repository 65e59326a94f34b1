"""The tangents of one step of an inner optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate, Tensors


def push_step(
    dynamics: Dynamics,
    now: Iterate,
    g: Tensors,
    settings: Tensors,
    dots: Sequence[Tensor | None],
    g_dots: Sequence[Tensor],
    setting_dots: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The tangents of the optimizer's step, K at once: of the iterate, the gradient and the settings, [K, *shape].

    Raises:
        RuntimeError: the step has no forward derivative.
    """
    split, states = len(g), now.flat()
    given = [*states, *g, *settings]
    all_dots = [*dots, *g_dots, *setting_dots]
    moving = [i for i, dot in enumerate(all_dots) if dot is not None]

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        whole = list(given)
        for i, value in zip(moving, values, strict=True):
            whole[i] = value
        iterate = Iterate.like(now, whole[: len(states)])
        after = dynamics.step(iterate, whole[len(states) : len(states) + split], whole[len(states) + split :])
        return tuple(x for x, dot in zip(after.flat(), dots, strict=True) if dot is not None)

    # a dual number must be writeable, which an expanded tensor (the gradient of a sum) is not
    primals = tuple(given[i].contiguous() for i in moving)

    def push(*tangents: Tensor) -> Any:
        return torch.func.jvp(step, primals, tangents)[1]

    batched = tuple(dot.contiguous() for dot in all_dots if dot is not None)
    try:
        found = _vectorised(push, batched)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(
            "the optimizer's step cannot be differentiated in forward mode, which pb.Forward needs "
            f"({error}): write it in plain torch operations, or use pb.Reverse()"
        ) from error
    rest = iter(found)
    return [None if dot is None else next(rest) for dot in dots]


def _vectorised(push: Callable[..., Any], dots: tuple[Tensor, ...]) -> Any:
    """`push` of every row of `dots`: at once, or one by one where an operation has no rule for vmap."""
    count = len(dots[0])
    if count > 1:
        try:
            return torch.vmap(push)(*dots)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            pass  # slower below; if it is no question of vmap, the same error comes again
    rows = [push(*(dot[k] for dot in dots)) for k in range(count)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]
