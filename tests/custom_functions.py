"""Custom autograd functions, each good or bad in one way."""

import torch


class Sine(torch.autograd.Function):
    """sin, without a forward derivative. Its result is no torch call's, so it seems to come from outside a loss."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, bar):
        return bar * ctx.saved_tensors[0].cos()


class Square(torch.autograd.Function):
    """x^2, without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, bar):
        return 2 * ctx.saved_tensors[0] * bar


class OnceSine(torch.autograd.Function):
    """sin with a forward derivative and without a second backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, bar):
        return ctx.saved_tensors[0].cos() * bar

    @staticmethod
    def jvp(ctx, dot):
        return ctx.saved_tensors[0].cos() * dot


class NoVmap(Sine):
    """sin whose backward reads a value, which vmap cannot."""

    @staticmethod
    def backward(ctx, bar):
        return bar * ctx.saved_tensors[0].cos() * (1.0 if bar.sum().item() != 1e9 else 2.0)


class Detached(Sine):
    """sin whose backward is right once, and has no derivative in x: a value read from outside of the graph."""

    @staticmethod
    def backward(ctx, bar):
        return bar * torch.from_numpy(ctx.saved_tensors[0].detach().numpy()).cos()


class Doubled(Sine):
    """sin with a wrong backward."""

    @staticmethod
    def backward(ctx, bar):
        return 2 * bar * ctx.saved_tensors[0].cos()
