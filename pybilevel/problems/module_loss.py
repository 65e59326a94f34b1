"""The inner loss of an nn.Module: its parameters are those of the inner problem, its buffers follow a policy."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Policy = Literal["batch", "frozen", "carry"]
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
Which = Callable[[str], bool] | Iterable[str] | None


class ModuleLoss:
    """A callable inner loss made of a module and a loss of it.

        inner = pb.ModuleLoss(net, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
        w = pb.unroll(inner, inner.parameters(), steps=5, optimizer=pb.SGD(0.1), batches=batches)
        inner.load(w)                                            # where the trained weights are wanted in `net`

    Args:
        net: the module, compiled or not. Its modes are its own: dropout and BatchNorm in train mode act as they do in
            training.
        loss: loss(model, hparams, batch) -> number; without its second argument where `unroll` has no hparams, without
            its last where it has no batches. `model` is `net` with the parameters of the inner problem.
        buffers: what becomes of buffers (running statistics of BatchNorm and InstanceNorm layers in train mode):
            "batch": every forward uses the statistics of its batch, the running ones are neither read nor changed
            (MAML); "frozen": the running ones are used and not changed, as in eval mode; "carry": every forward changes
            the buffers, of whatever module, as training does; they travel with the iterates and in
            `State.module_buffers`, without gradients, and those of `net` stay as they are until `load`.

    Attributes:
        net: the module, uncompiled.
        loss, policy: as given.
        compiled: whether torch.compile made the module or the loss.

    Parameters of `net` that are not among w keep their values, and get gradients like every captured tensor.

    Memory: with "carry" every stored state holds the buffers of the module.

    Raises:
        TypeError: net is no module, or loss no callable. ValueError: another policy.
    """

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], buffers: Policy = "batch") -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net must be a torch.nn.Module, got {net!r}: a plain callable loss needs no ModuleLoss"
            )
        if not callable(loss):
            raise TypeError(f"loss must be a callable loss(model, ...) -> number, got {loss!r}")
        if buffers not in get_args(Policy):
            raise ValueError(f"buffers must be one of {', '.join(get_args(Policy))}, got {buffers!r}")
        self.net: nn.Module = getattr(net, "_orig_mod", net)
        self.loss = loss
        self.policy = buffers
        self.compiled = self.net is not net or hasattr(loss, "_torchdynamo_orig_callable")
        self._called = _Called(self.net, net, loss)

    def parameters(self, which: Which = None) -> dict[str, Tensor]:
        """Parameters of the module by name, the very tensors: as w0, they get the gradients of the initial weights.

        Args:
            which: a predicate on names, or names, of parameters or of submodules for all of theirs. None: every
                parameter that requires a gradient, as torch.optim would change.

        Raises:
            ValueError: a name is none of the module's, or nothing is left.
        """
        every: dict[str, Tensor] = dict(self.net.named_parameters())
        found: dict[str, Tensor]
        if which is None:
            found = {name: p for name, p in every.items() if p.requires_grad}
        elif callable(which):
            found = {name: p for name, p in every.items() if which(name)}
        else:
            found = dict(_named(every, [which] if isinstance(which, str) else which))
        if not found:
            raise ValueError(f"which selects no parameter of net, which has {', '.join(every) or 'none'}")
        return found

    def buffers(self) -> dict[str, Tensor]:
        """Those that travel with the iterates, by name: all of the module's under "carry", else none."""
        return dict(self.net.named_buffers()) if self.policy == "carry" else {}

    def __call__(self, w: Mapping[str, Tensor], *rest: Any) -> Tensor:
        """The loss at w; `rest` are hparams and batch, where there are any. Buffers stay as they are."""
        return self.run(w, self.buffers(), *rest)[0]

    def run(
        self, w: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *rest: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss at w with these buffers, and the buffers afterwards; the given ones are not changed."""
        self._check_names(w)
        given = {f"net.{name}": value for name, value in w.items()}
        # clones, all of them: batch_norm changes its statistics in place without counting it as a new version
        given |= {f"net.{name}": buffer.clone() for name, buffer in buffers.items()}
        with self._statistics():
            value: Tensor = torch.func.functional_call(self._called, given, rest)
        # functional_call wrote into `given` what the module assigned
        return value, {name: given[f"net.{name}"].detach() for name in buffers}

    def load(self, w: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> None:
        """Copies trained parameters into the module, and `state.module_buffers` into its buffers.

        Raises:
            ValueError: a name is none of the module's, or a shape is another.
        """
        self._check_names(w)
        held = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        given = {**w, **(buffers or {})}
        for name, value in given.items():
            if name not in held:
                raise ValueError(f"net has no buffer {name!r}")
            if held[name].shape != value.shape:
                raise ValueError(
                    f"{name} has shape {list(value.shape)} but in net {list(held[name].shape)}: with tasks, load one"
                )
        with torch.no_grad():
            for name, value in given.items():
                held[name].copy_(value)

    def _check_names(self, w: Any) -> None:
        if not isinstance(w, Mapping):
            raise TypeError(
                f"w must be a dict of parameters by name, got {type(w).__name__}: inner.parameters()"
            )
        unknown = w.keys() - {name for name, _ in self.net.named_parameters(remove_duplicate=False)}
        if unknown:
            raise ValueError(
                f"net has no parameter {', '.join(sorted(unknown))}: w0 is a dict like inner.parameters()"
            )

    @contextmanager
    def _statistics(self) -> Iterator[None]:
        """Within it, normalisation layers in train mode treat their running statistics as the policy says."""
        layers = [m for m in self.net.modules() if isinstance(m, _NormBase) and m.training]
        kept = [{name: layer._buffers[name] for name in _RUNNING} for layer in layers]
        if self.policy == "batch":
            for layer in layers:
                # without running statistics a layer uses those of the batch
                layer._buffers.update(dict.fromkeys(_RUNNING))
        elif self.policy == "frozen":
            for layer in layers:
                layer.training = False
        try:
            yield
        finally:
            for layer, held in zip(layers, kept, strict=True):
                layer.training = True
                if self.policy == "batch":
                    layer._buffers.update(held)

    def __repr__(self) -> str:
        return f"ModuleLoss({type(self.net).__name__}, {self.loss!r}, buffers={self.policy!r})"


class _Called(nn.Module):
    """The loss as the forward of a module that holds the other, so that functional_call reaches all uses of it.

    `model` is `net`, or compiled from it.
    """

    def __init__(self, net: nn.Module, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self._held = (loss, model)  # in a tuple: not to be registered

    def forward(self, *rest: Any) -> Tensor:
        loss, model = self._held
        return loss(model, *rest)


def _named(every: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    for wanted in names:
        found = [name for name in every if name == wanted or name.startswith(f"{wanted}.")]
        if not found:
            raise ValueError(f"net has no parameter or submodule {wanted!r}: it has {', '.join(every)}")
        yield from ((name, every[name]) for name in found)
