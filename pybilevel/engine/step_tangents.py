"""The tangents of one step of an inner optimizer, by two pullbacks or in forward mode."""

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from pybilevel.engine import captures
from pybilevel.engine.dynamics import Dynamics
from pybilevel.engine.iterate import Iterate, Tensors

Dots = Sequence[Tensor | None]
PushStep = Callable[[Dots], list[Tensor | None]]


class StepTangents:
    """Tangents of the steps of one call, K at once; remembers which way works.

    The pullback of a step is linear in its cotangent u, and the pullback of that, taken in u, is the tangent map: two
    graphs of a few small operations, made once a step. `vmap(jvp(step))`, which needs one pass, costs four times as
    much where tensors are small (momentum, 10 x 16: 3.2 ms against 0.6 ms a parameter), so it is the fall-back.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics
        self._looked = self._forward_mode = False

    def linearise(self, now: Iterate, g: Tensors, settings: Tensors, wanted: Sequence[bool]) -> PushStep:
        """The map of tangents of (iterate, g, each setting), [K, *shape] or None for zeros, to those after the step.

        `wanted` are the settings that have tangents.
        """
        if self._forward_mode:
            return lambda dots: push_step(self._dynamics, now, g, settings, dots)
        given = [*now.flat(), *g, *settings]
        needed = [*(x.is_floating_point() for x in now.flat()), *[True] * len(g), *wanted]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(given, needed, strict=True)]
        with torch.enable_grad():
            after = _step(self._dynamics, now, len(g), inputs).flat()
            if self._marked_once(after):
                self._forward_mode = True
                return self.linearise(now, g, settings, wanted)
            live = [x for x in after if x.requires_grad]
            bars = [torch.zeros_like(x, requires_grad=True) for x in live]
            moving = [x for x in inputs if x.requires_grad]
            pulled = torch.autograd.grad(live, moving, bars, create_graph=True, allow_unused=True)

        def push(dots: Dots) -> list[Tensor | None]:
            mine = [dot for dot, need in zip(dots, needed, strict=True) if need]
            pairs = [(p, d) for p, d in zip(pulled, mine, strict=True) if p is not None and d is not None]
            count = len(pairs[0][1])
            try:
                found = _pull([p for p, _ in pairs], [d for _, d in pairs], bars)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                self._forward_mode = True
                return push_step(self._dynamics, now, g, settings, dots)
            rest = iter(found)
            changed = [next(rest) if x.requires_grad else None for x in after]
            return [
                None if dot is None else (x.new_zeros((count, *x.shape)) if y is None else y)
                for dot, x, y in zip(dots, after, changed, strict=False)
            ]

        return push

    def _marked_once(self, after: Tensors) -> bool:
        """Whether a function in the step has no second backward, and torch would give zeros in silence."""
        if self._looked:
            return False
        self._looked = True
        return any(captures.inspect_graph(x, ())[1] for x in after)


def push_step(
    dynamics: Dynamics, now: Iterate, g: Tensors, settings: Tensors, dots: Dots
) -> list[Tensor | None]:
    """The tangents after the step in forward mode; `dots` are those of (iterate, g, settings), [K, *shape] or None.

    Raises:
        RuntimeError: the step has no forward derivative.
    """
    given = [*now.flat(), *g, *settings]
    states = dots[: len(now.flat())]
    moving = [i for i, dot in enumerate(dots) if dot is not None]

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        whole = list(given)
        for i, value in zip(moving, values, strict=True):
            whole[i] = value
        after = _step(dynamics, now, len(g), whole).flat()
        return tuple(x for x, dot in zip(after, states, strict=True) if dot is not None)

    # a dual number must be writeable, which an expanded tensor (the gradient of a sum) is not
    primals = tuple(given[i].contiguous() for i in moving)
    batched = tuple(dot.contiguous() for dot in dots if dot is not None)

    try:
        found = _vectorised(step, primals, batched)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(
            "the optimizer's step cannot be differentiated in forward mode, which pb.Forward needs "
            f"({error}): write it in plain torch operations, or use pb.Reverse()"
        ) from error
    rest = iter(found)
    return [None if dot is None else next(rest) for dot in states]


def _step(dynamics: Dynamics, now: Iterate, leaves: int, inputs: Sequence[Tensor]) -> Iterate:
    """The step on (iterate, g, settings) as one list."""
    split = len(now.flat())
    iterate = Iterate.like(now, inputs[:split])
    return dynamics.step(iterate, inputs[split : split + leaves], list(inputs[split + leaves :]))


def _pull(
    outputs: Sequence[Tensor], dots: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The pullbacks of `outputs` at all rows of `dots` in `inputs`."""

    def pull(bars: Sequence[Tensor], batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(
            outputs, inputs, bars, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    if len(dots[0]) > 1:
        return pull(dots, True)
    found = pull([dot[0] for dot in dots], False)
    return [None if x is None else x[None] for x in found]


def _vectorised(
    step: Callable[..., tuple[Tensor, ...]], primals: tuple[Tensor, ...], dots: tuple[Tensor, ...]
) -> Sequence[Tensor]:
    """The tangents of `step` at all rows of `dots`: at once, or one by one where an operation has no rule for vmap."""
    count = len(dots[0])
    if count > 1:
        try:
            rows: Sequence[Tensor] = torch.vmap(lambda *one: torch.func.jvp(step, primals, one)[1])(*dots)
            return rows
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            pass  # slower below; if it is no question of vmap, the same error comes again
    found = [_one(step, primals, [dot[k] for dot in dots]) for k in range(count)]
    return [torch.stack(column) for column in zip(*found, strict=True)]


def _one(
    step: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], dots: Sequence[Tensor]
) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, dot) for x, dot in zip(primals, dots, strict=True)]  # type: ignore[no-untyped-call]
        after = [forward_ad.unpack_dual(x) for x in step(*duals)]  # type: ignore[no-untyped-call]
        return [
            torch.zeros_like(x.primal) if x.tangent is None else x.tangent.detach().clone() for x in after
        ]
