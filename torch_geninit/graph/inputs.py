"""Inputs to run a network on: the user's, without their values, or a guess from its first layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_TOKENS = 16


class Inputs(NamedTuple):
    """Arguments of one call.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        text: what they are, for a message.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    text: str


def given(example_inputs: Any) -> Inputs:
    """Read what a user passed as ``example_inputs=``: a tensor, a tuple (or list), or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        inputs = Inputs((), dict(example_inputs), "")
    elif type(example_inputs) in (tuple, list):
        inputs = Inputs(tuple(example_inputs), {}, "")
    else:
        inputs = Inputs((example_inputs,), {}, "")
    parts = [describe(value) for value in inputs.args]
    parts += [f"{name}={describe(value)}" for name, value in inputs.kwargs.items()]
    return inputs._replace(text=", ".join(parts))


def describe(value: Any) -> str:
    """Name a value in a message: a tensor by shape and dtype."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def guesses(model: nn.Module, batch: int = 1) -> Iterator[Inputs]:
    """Yield inputs that a model may take, the likeliest first, judging by its layers.

    The first layer with weights decides: an image (or signal, or volume) with the channels of a convolution, the
    features of a linear or recurrent layer, or tokens for an embedding. The tensors are on the meta device.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            yield from _images(model, module, batch)
            return
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield _tensor((batch, _TOKENS), torch.int64)
            return
        if isinstance(module, nn.Linear):
            yield _tensor((batch, module.in_features))
            yield _tensor((batch, _TOKENS, module.in_features))
            return
        if isinstance(module, nn.RNNBase):
            shape = (batch, _TOKENS) if module.batch_first else (_TOKENS, batch)
            yield _tensor((*shape, module.input_size))
            return
        if isinstance(module, nn.MultiheadAttention):
            shape = (batch, _TOKENS) if module.batch_first else (_TOKENS, batch)
            yield _tensor((*shape, module.embed_dim))
            return


def _tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    value = torch.empty(shape, dtype=dtype, device="meta")
    return Inputs((value,), {}, describe(value))


def _images(model: nn.Module, stem: _ConvNd, batch: int) -> Iterator[Inputs]:
    """Yield images by the size that the stem looks made for: 32 x 32 where it keeps the resolution, 224 otherwise."""
    space = len(stem.kernel_size)
    if space == 1:
        sizes: tuple[int, ...] = (128, 1024, 16000)
    elif space == 3:
        sizes = (16, 32, 64, 112)
    else:
        reduces = stem.stride[0] > 1 or stem.kernel_size[0] >= 7
        deep = sum(isinstance(module, _POOLS) for module in model.modules()) >= 5
        sizes = (224, 32, 299, 256, 64, 28) if reduces or deep else (32, 224, 28, 64, 256)
    own = _own_size(model)
    for size in dict.fromkeys((*own, *sizes)):
        yield _tensor((batch, stem.in_channels, *[size] * space))


def _own_size(model: nn.Module) -> tuple[int, ...]:
    """Return the image size that a model names itself, as vision transformers do."""
    size = getattr(model, "image_size", None)
    if isinstance(size, tuple | list) and size:
        size = size[0]
    return (size,) if isinstance(size, int) and not isinstance(size, bool) and size > 0 else ()


def without_data(inputs: Inputs, stand_in: Callable[[Tensor], Tensor]) -> Inputs:
    """Replace every tensor of the arguments by its stand-in."""

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            return stand_in(value)
        if type(value) in (list, tuple):
            return type(value)(swap(item) for item in value)
        if type(value) is dict:
            return {name: swap(item) for name, item in value.items()}
        return value

    return Inputs(swap(inputs.args), swap(dict(inputs.kwargs)), inputs.text)
