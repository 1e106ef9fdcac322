"""Tensors as a file describes them, checked against the bytes that are really there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LIMIT = 1 << 48


class RefusedPickle(ValueError):
    """A file that holds anything but tensors and plain containers, or lies about its sizes.

    The message is what it holds: "a set", "a storage larger than the file".
    """


def expect(condition: bool, found: str) -> None:
    """Refuse the file for what was ``found`` in it, unless ``condition`` holds."""
    if not condition:
        raise RefusedPickle(found)


def shown(value: Any) -> str:
    """Return a short spelling of text from a file that no terminal takes for a command."""
    return ascii(str(value)[:60])[1:-1]


class Symbol(NamedTuple):
    """A name out of a pickle; never the object of that name."""

    module: str
    name: str


@dataclass
class Storage:
    """Bytes of a type, somewhere in the file; ``data`` is None until they are found."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Described:
    """A tensor as the pickle describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Return the tensor, on the file's own bytes where they are aligned."""
        if self.storage.data is None:
            raise RefusedPickle("a tensor whose values are not in the file")
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.storage.dtype)
        with warnings.catch_warnings():
            # torch warns that the bytes can't be written to; nobody writes to them
            warnings.simplefilter("ignore")
            flat = torch.frombuffer(self.storage.data, dtype=self.storage.dtype, count=self.storage.numel)
        if flat.data_ptr() % self.storage.dtype.itemsize:
            flat = flat.clone()
        return flat.as_strided(self.size, self.stride, self.offset)


def describe(storage: Any, offset: Any, size: Any, stride: Any) -> Described:
    """Check the arguments by which a pickle rebuilds a tensor."""
    expect(type(storage) is Storage, "a tensor without a storage")
    expect(
        type(size) is tuple
        and type(stride) is tuple
        and len(size) == len(stride) <= 8
        and all(type(n) is int and 0 <= n < _LIMIT for n in (offset, *size, *stride)),
        "a tensor with an impossible shape",
    )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    expect(
        0 in size or (last < storage.numel and prod(size) <= storage.numel),
        "a tensor larger than its storage",
    )
    return Described(storage, offset, size, stride)


def storage_of(identity: Any) -> tuple[str, Storage]:
    """Return (key, storage) of a persistent id ("storage", type, key, location, number of elements, ...)."""
    expect(
        type(identity) is tuple
        and len(identity) in (5, 6)
        and identity[0] == "storage"
        and type(identity[1]) is Symbol
        and identity[1].name in STORAGES
        and type(identity[2]) is str
        and type(identity[4]) is int
        and 0 <= identity[4] < _LIMIT
        and (len(identity) == 5 or identity[5] is None),
        "a reference to something that is no plain storage",
    )
    return identity[2], Storage(STORAGES[identity[1].name], identity[4])


def tensors(state: Mapping[Any, Any], limit: int) -> dict[str, Tensor]:
    """Return the tensors of a state dict, described or real, together no larger than ``limit`` bytes.

    Many views of one storage would else be as many copies once they are written.

    Raises:
        RefusedPickle: for anything but dense floating-point tensors under names.
    """
    total = 0
    result = {}
    for name, item in state.items():
        expect(
            type(name) is str and isinstance(item, Described | Tensor), f"'{shown(name)}', which is no tensor"
        )
        if isinstance(item, Described):
            shape, dtype = item.size, item.storage.dtype
        else:
            plain = item.layout is torch.strided and item.device.type == "cpu" and not item.is_quantized
            expect(plain, f"the tensor '{shown(name)}', which is not dense")
            shape, dtype = tuple(item.shape), item.dtype
        expect(dtype.is_floating_point, f"'{shown(name)}' of {dtype}, and a GHN has real numbers only")
        total += prod(shape) * dtype.itemsize
        expect(total <= limit, "more values than the file has bytes")
        result[name] = item.tensor() if isinstance(item, Described) else item
    return result
