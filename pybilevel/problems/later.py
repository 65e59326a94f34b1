"""The inner problems whose names are settled and whose mathematics comes with a later version."""

from typing import Any


class MLP:
    """A small fused multilayer perceptron."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "pb.MLP is not in this version: pass a callable loss(w) or pb.SoftmaxRegression"
        )


class ModuleLoss:
    """The loss of an nn.Module, its BatchNorm buffers handled on purpose."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "pb.ModuleLoss is not in this version: pass loss(w) that calls "
            "torch.func.functional_call(net, w, (x,)), with net.eval() if it has BatchNorm or dropout"
        )
