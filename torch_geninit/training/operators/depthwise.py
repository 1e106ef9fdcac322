"""Depthwise convolutions, some of whose bfloat16 gradients are slow in oneDNN."""

from __future__ import annotations

import ctypes
from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_geninit.training.operators import native

KERNELS = (3, 5, 7)
"""Sizes of kernels that are compiled."""


class Shape(ctypes.Structure):
    """What the compiled kernels are told of a convolution."""

    _fields_ = [
        (name, c_int64)
        for name in ("images", "channels", "height", "width", "out_height", "out_width", "stride", "padding")
    ]


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolve each channel of (N, C, H, W) with its own kernel of (C, 1, h, w).

    Under autocast the gradients that are slow in oneDNN's bfloat16 are computed by compiled kernels, without
    them in float32: the one by a kernel larger than 3 (oneDNN takes 10 times as long), and the one by the
    input where there is a stride (30 times).

    Example:
        >>> x, kernels = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
        >>> depthwise_convolution(x, kernels, None, (2, 2), (1, 1)).shape
        torch.Size([2, 4, 3, 3])
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return Depthwise.apply(x.to(torch.get_autocast_dtype(device)), weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])


class Depthwise(torch.autograd.Function):
    """oneDNN's convolution, with other gradients where its own are slow."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_input = max(ctx.stride) > 1 and ctx.needs_input_grad[0]
        by_weight = max(weight.shape[2:]) > 3
        geometry = (ctx.stride, ctx.padding)
        wanted = [ctx.needs_input_grad[0] and not by_input, not by_weight]
        dx, dweight = _backward(gradient, x, weight.to(x.dtype), *geometry, wanted)
        # oneDNN computes the kernel's gradient beside the bias's, wanted or not.
        dbias = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.has_bias else None
        if by_input:
            dx = _input_gradient(gradient, x, weight, *geometry)
        if by_weight:
            dweight = _weight_gradient(gradient, x, weight, *geometry)
        return dx, dweight, dbias, None, None


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return those gradients by input and weight that are wanted, from torch."""
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], [*wanted, False]
    )
    return dx, dweight


def _input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    if not _fits(gradient, x, weight, stride, padding):
        wide = (gradient.float(), x.float(), weight.float())
        return _backward(*wide, stride, padding, [True, False])[0].to(x.dtype)  # type: ignore[union-attr]
    dx = torch.empty_like(x)
    _call("depthwise_input_gradient", gradient, x, weight, stride, padding, (gradient, weight, dx))
    return dx


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    if not _fits(gradient, x, weight, stride, padding):
        wide = (gradient.float(), x.float(), weight.float())
        return _backward(*wide, stride, padding, [False, True])[1]  # type: ignore[return-value]
    dweight = torch.empty_like(weight)
    _call("depthwise_weight_gradient", gradient, x, weight, stride, padding, (gradient, x, dweight))
    return dweight


def _fits(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> bool:
    """Tell whether a compiled kernel takes these: square in everything but the images."""
    height, width = weight.shape[2:]
    return (
        height == width
        and width in KERNELS
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and stride[0] == stride[1]
        and padding[0] == padding[1] < width
        and native.takes(gradient, x)
    )


def _call(
    name: str,
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    tensors: tuple[Tensor, ...],
) -> None:
    shape = Shape(*x.shape, *gradient.shape[2:], stride[0], padding[0])
    native.call(name, shape, weight.shape[-1], *tensors)
