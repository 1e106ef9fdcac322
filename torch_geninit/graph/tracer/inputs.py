"""Inputs to run a network on: the user's, without their values, or a guess from its first layers."""

from __future__ import annotations

from collections.abc import Mapping
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
        if value.is_nested:
            return "nested tensor"
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def guesses(model: nn.Module, batch: int = 1) -> list[Inputs]:
    """Return inputs that a model may take, the likeliest first, judging by its layers.

    The first layer with weights decides: an image (or signal, or volume) with the channels of a convolution,
    the features of a linear or recurrent layer, or tokens for an embedding. What a model says itself goes
    before that (``default_cfg``, ``image_size``), images of three channels and ``dummy_inputs`` come after
    it.
    """
    shapes: list[tuple[int, ...]] = []
    tokens = False
    for module in model.modules():
        if isinstance(module, _ConvNd):
            shapes = [(module.in_channels, *size) for size in _image_sizes(model, module)]
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tokens = True
        elif isinstance(module, nn.Linear):
            shapes = [(module.in_features,), (_TOKENS, module.in_features)]
        elif isinstance(module, nn.RNNBase):
            shapes = [(_TOKENS, module.input_size)]
        elif isinstance(module, nn.MultiheadAttention):
            shapes = [(_TOKENS, module.embed_dim)]
        if shapes or tokens:
            break
    else:
        return []
    if tokens:
        return [_tensor((batch, _TOKENS), torch.int64), *_declared(model)]
    found = [_tensor((batch, *shape)) for shape in dict.fromkeys((*_own_shape(model, shapes[0]), *shapes))]
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
        found = [_tensor((_TOKENS, batch, shapes[0][-1]))]
    elif not isinstance(module, _ConvNd) or module.in_channels > 4:
        found += [_tensor((batch, 3, size, size)) for size in (224, 256)]
    return [*found, *_declared(model)]


def _tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    value = torch.empty(shape, dtype=dtype, device="meta")
    return Inputs((value,), {}, describe(value))


def _image_sizes(model: nn.Module, stem: _ConvNd) -> list[tuple[int, ...]]:
    """Return sizes that the stem looks made for: 32 x 32 where it keeps the resolution, else 224 x 224."""
    space = len(stem.kernel_size)
    if space == 1:
        sizes: tuple[int, ...] = (128, 1024, 16000)
    elif space == 3:
        sizes = (16, 32, 64, 112)
    else:
        reduces = stem.stride[0] > 1 or stem.kernel_size[0] >= 7
        deep = sum(isinstance(module, _POOLS) for module in model.modules()) >= 5
        sizes = (224, 32, 299, 256, 64, 28) if reduces or deep else (32, 224, 28, 64, 256)
    return [(size,) * space for size in sizes]


def _own_shape(model: nn.Module, guess: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the image shape that a model names itself, as many vision models do."""
    config = getattr(model, "default_cfg", None)
    shape = config.get("input_size") if isinstance(config, Mapping) else None
    if isinstance(shape, tuple | list) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
        return [tuple(shape)]
    size = getattr(model, "image_size", None)
    size = size[0] if isinstance(size, tuple | list) and size else size
    channels = guess[0] if len(guess) == 3 and guess[0] <= 4 else 3
    return [(channels, size, size)] if type(size) is int and size > 0 else []


def _declared(model: nn.Module) -> list[Inputs]:
    """Return the inputs that a model gives as an example itself."""
    try:
        inputs = getattr(model, "dummy_inputs", None)
    except Exception:  # noqa: BLE001 - a property of somebody's class
        return []
    return [given(inputs)] if isinstance(inputs, Mapping) and inputs else []
