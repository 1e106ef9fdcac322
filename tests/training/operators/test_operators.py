"""Faster operators against torch's own in float64, compiled and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_geninit.training.operators import native
from torch_geninit.training.operators.attention import attention
from torch_geninit.training.operators.depthwise import depthwise_convolution
from torch_geninit.training.operators.normalise import batch_normalise

ROUNDING = 2.0**-8
"""Of a bfloat16, relatively."""

ONEDNN = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether oneDNN serves bfloat16 here, which takes AVX512 or better; torch has no public name for it."""


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(native, "kernels", lambda: None)
    elif native.kernels() is None:
        pytest.skip("no C++ compiler")
    return request.param


def images(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16().contiguous(memory_format=torch.channels_last)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(call: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.to(y.dtype))]


def assert_rounded(found: Sequence[Tensor], exact: Sequence[Tensor], slack: Sequence[float]) -> None:
    """Each tensor is the exact one but for bfloat16's rounding, of its largest values, times its slack."""
    for index, (a, b) in enumerate(zip(found, exact, strict=True)):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error < slack[index] * ROUNDING, f"{index}: {error:.2e}"


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("shape", [(16, 20, 8, 8), (8, 64, 4, 4), (4, 96, 8, 8), (3, 5, 7, 7)])
def test_batch_normalise(kernels: str, shape: tuple[int, ...], shortcut: bool, relu: bool) -> None:
    channels = shape[1]
    x = images(*shape) * 0.25 + 3  # a mean far from zero
    inputs = [x, values(channels, seed=1), values(channels, seed=2), *([images(*shape, seed=3)] * shortcut)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return batch_normalise(x, weight, bias, 1e-3, residual, relu)

    def before(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
        return y if residual is None else y + residual

    def exact(*inputs: Tensor) -> Tensor:
        return before(*inputs).relu() if relu else before(*inputs)

    wide = [tensor.double() for tensor in inputs]
    gradient = images(*shape, seed=4)
    gradient[before(*wide).abs() < 0.05] = 0  # near the corner of ReLU rounding decides
    # Uncompiled, the sum is rounded twice.
    slack = [1 if kernels == "compiled" else 2] * (1 + len(inputs))
    assert_rounded(
        with_gradients(ours, inputs, gradient), with_gradients(exact, wide, gradient.double()), slack
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2), (9, 1)])
@pytest.mark.parametrize("channels, height, width", [(24, 9, 6), (32, 8, 8)])
def test_depthwise_convolution(
    kernels: str, channels: int, height: int, width: int, kernel: int, stride: int, bias: bool
) -> None:
    inputs = [images(2, channels, height, width), values(channels, 1, kernel, kernel, seed=1)]
    inputs[1] = inputs[1].bfloat16().float()  # oneDNN rounds them
    inputs += [values(channels, seed=2).bfloat16().float()] * bias
    padding = kernel // 2

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, groups=channels)

    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return depthwise_convolution(x, weight, bias, (stride, stride), (padding, padding))

    wide = [tensor.double() for tensor in inputs]
    gradient = images(*exact(*wide).shape, seed=3)
    # Without oneDNN torch itself adds the kernel x kernel products of an input's gradient in bfloat16, and
    # their roundings grow like the root of their number. It computes what the compiled kernels don't.
    theirs = 1 if ONEDNN else kernel
    slack = [1, theirs if stride == 1 else 1, theirs if kernel <= 3 else 1, 1]
    assert_rounded(
        with_gradients(ours, inputs, gradient), with_gradients(exact, wide, gradient.double()), slack
    )


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    query, key, value = (values(2, 3, 7, 8, seed=seed).double() for seed in range(3))
    inputs = [query, key, value, *([values(1, 3, 7, 7, seed=3).double()] * masked)]
    gradient = values(2, 3, 7, 8, seed=4).double()
    found = with_gradients(attention, inputs, gradient)
    expected = with_gradients(F.scaled_dot_product_attention, inputs, gradient)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_more_threads_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernels", lambda: "some")
    assert native.takes(images(1, 8, 4, 4))
    assert not native.takes(images(1, 8, 4, 4).float())
    assert not native.takes(images(1, 8, 4, 4).contiguous())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not native.takes(images(1, 8, 4, 4))
