"""Inputs to run a network on: the user's, without their values, or a guess from its first layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from torch_geninit._utils.modules import named_modules
from torch_geninit.graph.tracer.clone import tensors_in

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NESTED = (
    "a nested tensor has no shape that a graph could say; pad it to a dense one for the trace, and pass the "
    "graph with graph="
)
_TOKENS = 16
_LARGEST = 2048


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


EXPECTED = "a tensor, a tuple of arguments, or a dict of keyword arguments"


def unusable(example_inputs: Any) -> str | None:
    """Say why no network could be traced on ``example_inputs=``; None if nothing speaks against it."""
    if isinstance(example_inputs, Iterator):
        return f"expected {EXPECTED}, got a {type(example_inputs).__name__}, which can't be read twice"
    if isinstance(example_inputs, Mapping) and not all(isinstance(name, str) for name in example_inputs):
        return f"expected {EXPECTED}, got a dict whose keys are not the names of arguments"
    tensors = list(tensors_in(example_inputs))
    if any(tensor.is_nested for tensor in tensors):
        return NESTED
    if tensors and not any(tensor.numel() for tensor in tensors):
        return f"expected tensors with elements, got a {describe(tensors[0])}. A batch of one is enough"
    return None


def unlikely(example_inputs: Any) -> str | None:
    """Say what ``example_inputs=``, on which a network failed, were probably meant to be."""
    numbers = example_inputs if isinstance(example_inputs, tuple | list) else ()
    if numbers and all(type(extent) is int for extent in numbers):
        shape = ", ".join(map(str, numbers))
        return f"expected {EXPECTED}, got numbers. If they are a shape, pass torch.zeros({shape})"
    if type(example_inputs) in (int, float, bool, str, bytes) or isinstance(example_inputs, type):
        return f"expected {EXPECTED}, got {str(example_inputs)[:50]!r}"
    for item in _items(example_inputs):
        if isinstance(item, torch.utils.data.DataLoader | torch.utils.data.Dataset):
            return f"expected {EXPECTED}, got a {type(item).__name__}. Pass the inputs of one of its batches"
        if type(item).__module__.partition(".")[0] == "numpy":
            kind = type(item).__name__
            return f"expected {EXPECTED}, got a numpy {kind}. Convert it with torch.as_tensor"
    return None


def _items(example_inputs: Any) -> Iterable[Any]:
    if isinstance(example_inputs, Mapping):
        return example_inputs.values()
    return example_inputs if type(example_inputs) in (tuple, list) else (example_inputs,)


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
    return inputs._replace(text=", ".join(parts) or "no arguments")


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
    for _, module in named_modules(model):
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
        sizes = dict.fromkeys((224, 256, *_sizes_of_positions(model, module), 32, 64))
        found += [_tensor((batch, 3, size, size)) for size in sizes]
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
        deep = sum(isinstance(module, _POOLS) for _, module in named_modules(model)) >= 5
        sizes = (224, 32, 299, 256, 64, 28) if reduces or deep else (32, 224, 28, 64, 256)
        first, *others = sizes
        sizes = tuple(
            dict.fromkeys((first, *_sizes_of_positions(model, stem), *others, *_size_of_pool(model)))
        )
    return [(size,) * space for size in sizes]


def _sizes_of_positions(model: nn.Module, stem: nn.Module) -> list[int]:
    """Return the sizes of square images that the tables of positions of a model imply.

    A table for n patches of p x p pixels, with or without tokens beside them, says sqrt(n) p.
    """
    if isinstance(stem, _ConvNd):
        width, patches = stem.out_channels, [int(stem.stride[0])]
    elif isinstance(stem, nn.Linear):
        width = stem.out_features
        patches = [isqrt(stem.in_features // c) for c in (3, 1, 4) if _square(stem.in_features, c)]
    else:
        return []
    sizes = []
    for module_name, module in named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or is_lazy(tensor) or tensor.ndim < 2 or width not in tensor.shape:
                continue
            if "pos" in f"{module_name}.{name}".lower():
                positions = [tensor.numel() // width - beside for beside in (0, 1, 2, 5)]
                sizes += [isqrt(n) * patch for patch in patches for n in positions if n > 0 and _square(n)]
    return [size for size in dict.fromkeys(sizes) if 1 < size <= _LARGEST]


def _size_of_pool(model: nn.Module) -> list[int]:
    """Return the size of images that a last pooling of k x k, after strides of product s, implies: k s."""
    layers = [m for _, m in named_modules(model) if isinstance(m, (_ConvNd, *_POOLS))]
    if not isinstance(layers[-1], nn.AvgPool2d):
        return []
    strides = [_first(layer.stride) for layer in layers[:-1] if _first(layer.kernel_size) > 1]
    size = _first(layers[-1].kernel_size) * prod(strides)
    return [size] if 1 < size <= _LARGEST else []


def _square(number: int, factor: int = 1) -> bool:
    return number % factor == 0 and isqrt(number // factor) ** 2 == number // factor


def _first(extent: Any) -> int:
    return int(extent[0] if isinstance(extent, tuple | list) else extent)


def _own_shape(model: nn.Module, guess: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the image shape that a model names itself, as many vision models do."""
    config = _attribute(model, "default_cfg")
    shape = config.get("input_size") if isinstance(config, Mapping) else None
    if isinstance(shape, tuple | list) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
        return [tuple(shape)]
    size = _attribute(model, "image_size")
    size = size[0] if isinstance(size, tuple | list) and size else size
    channels = guess[0] if len(guess) == 3 and guess[0] <= 4 else 3
    return [(channels, size, size)] if type(size) is int and size > 0 else []


def _declared(model: nn.Module) -> list[Inputs]:
    """Return the inputs that a model gives as an example itself."""
    inputs = _attribute(model, "dummy_inputs")
    return [given(inputs)] if isinstance(inputs, Mapping) and inputs else []


def _attribute(model: nn.Module, name: str) -> Any:
    try:
        return getattr(model, name, None)
    except Exception:  # noqa: BLE001 - a property of somebody's class
        return None
