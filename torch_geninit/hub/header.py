"""The header of a safetensors file, checked in full before anything else of the file is believed.

Layout of the format: 8 bytes N (little endian), N bytes of JSON, then the tensors' bytes without gap or
overlap. The JSON maps each tensor name to its dtype, shape and byte range, and ``__metadata__`` to strings.
Why not ``safetensors.safe_open``: docs/decisions/safetensors-header.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from torch_geninit._utils import strict_json

MAX_HEADER_BYTES = 1 << 20
"""A generator's header is some ten kilobytes; a larger bound only gives a hostile file more room."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

_MAX_DIMENSIONS = 16
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes: it holds a pickle, which is never loaded here"),
    (b"\x80", "a pickle, which is never loaded here"),
    (b"version https://git-lfs", "a git-lfs pointer; fetch the file itself with `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "a web page, perhaps an error saved under the file's name"),
)


class HeaderError(ValueError):
    """The header breaks the format; the message says where."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose byte ranges fill the file exactly.

    Attributes:
        tensors: name -> dtype, shape, byte range.
        metadata: the strings of ``__metadata__``.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, file_bytes: int) -> Header:
    """Read and check the header at the start of ``file``, which is ``file_bytes`` long.

    Memory and time are bounded by :data:`MAX_HEADER_BYTES`, whatever the header claims.

    Raises:
        HeaderError: if the file is not a well-formed safetensors file.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise HeaderError(f"the file is {len(prefix)} bytes long, too short for a safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        start = prefix + file.read(24)
        for magic, description in _FOREIGN:
            if start.startswith(magic):
                raise HeaderError(f"this is {description}")
        raise HeaderError(
            f"it announces a header of {length} bytes; a generator's header has at most {MAX_HEADER_BYTES}, "
            f"and the file has {file_bytes} in all"
        )
    text = file.read(length)
    if len(text) < length:
        raise HeaderError(f"the header ends after {len(text)} of {length} bytes")
    tensors, metadata = _parse(text)
    _check_ranges(tensors, file_bytes - 8 - length)
    return Header(tensors, metadata)


def _parse(text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if not text.startswith(b"{"):
        raise HeaderError(f"the header starts with {text[:8]!r} instead of '{{'")
    try:
        data = strict_json.parse(text)
    except ValueError as error:
        raise HeaderError(f"the header is not valid JSON: {error}") from error
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("__metadata__ is not an object of strings")
    return {name: _tensor(name, entry) for name, entry in data.items()}, metadata


def _tensor(name: str, entry: Any) -> TensorInfo:
    what = f"tensor {name[:100]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{what}: expected exactly dtype, shape and data_offsets, got {str(entry)[:100]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderError(f"{what}: expected a dtype out of {', '.join(ITEM_BYTES)}, got {str(dtype)[:100]}")
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise HeaderError(
            f"{what}: expected a shape of at most {_MAX_DIMENSIONS} sizes, got {str(shape)[:100]}"
        )
    if not _sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"{what}: expected data_offsets [begin, end], got {str(offsets)[:100]}")
    begin, end = offsets
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise HeaderError(
            f"{what}: {dtype} of shape {shape} takes {prod(shape) * ITEM_BYTES[dtype]} bytes, "
            f"but its data_offsets span {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_ranges(tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            kind = "overlaps the tensor before it" if info.begin < position else "leaves a gap before it"
            raise HeaderError(
                f"tensor {name[:100]!r} {kind}: it starts at byte {info.begin} instead of {position}"
            )
        position = info.end
    if position != data_bytes:
        problem = "truncated" if data_bytes < position else "followed by bytes that belong to no tensor"
        raise HeaderError(f"the file is {problem}: its tensors take {position} bytes, it has {data_bytes}")
