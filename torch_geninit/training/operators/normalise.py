"""Batch normalisation, the addition of a shortcut and ReLU in one operator."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_geninit.training.operators import native

STRIP = 64
"""Values that the kernels take at once."""


def batch_normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return act(weight * (x - mean) / sqrt(var + eps) + bias + residual) of (N, C, H, W), batch statistics.

    Example:
        >>> x = torch.randn(8, 4, 6, 6)
        >>> y = batch_normalise(x, torch.ones(4), torch.zeros(4), relu=True)
        >>> torch.allclose(y, F.relu(F.batch_norm(x, None, None, training=True)))
        True
    """
    if _fits(x, weight, bias, residual):
        return Normalise.apply(x, weight, bias, eps, residual, relu)
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def _fits(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Tell whether the compiled kernel takes these: whole strips of 64 values."""
    return (
        x.ndim == 4
        and weight is not None
        and bias is not None
        and weight.dtype == bias.dtype == torch.float32
        and (x.numel() // x.shape[1]) % _together(x.shape[1]) == 0
        and (residual is None or residual.shape == x.shape)
        and native.takes(x, *([] if residual is None else [residual]))
    )


def _together(channels: int) -> int:
    """Count the positions whose channels fill whole strips."""
    return STRIP // gcd(STRIP, channels)


class Normalise(torch.autograd.Function):
    """The compiled kernel and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, relu: bool
    ) -> Tensor:
        weight, bias = weight.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        mean, scale = torch.empty_like(weight), torch.empty_like(weight)
        inputs = (x, residual, weight, bias, float(eps), relu)
        native.call("normalise_forward", *_extents(x), *inputs, y, mean, scale)
        # Without a residual the sign of y is made anew from x.
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, mean, scale)
        ctx.relu, ctx.has_residual = relu, residual is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, mean, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        dresidual = torch.empty_like(x) if ctx.relu and ctx.has_residual else None
        inputs = (gradient, x, y, weight, bias, mean, scale, ctx.relu)
        native.call("normalise_backward", *_extents(x), *inputs, dx, dresidual, dweight, dbias)
        if ctx.has_residual and not ctx.relu:
            dresidual = gradient
        return dx, dweight, dbias, None, dresidual, None


def _extents(x: Tensor) -> tuple[int, int, int]:
    channels = x.shape[1]
    return x.numel() // channels, channels, _together(channels)
