"""Checkpoint files of several formats -> state dict and config, without running or believing any of them."""

from __future__ import annotations

import bz2
import lzma
import mmap
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from torch_geninit._utils import strict_json
from torch_geninit.convert.tensors import RefusedPickle, Storage, expect, shown, storage_of, tensors
from torch_geninit.convert.unpickler import MAGIC, Budget, Bytes, parse, parse_legacy
from torch_geninit.hub.file import METADATA_KEY

EXPANSION = 8
"""Times its size to which a compressed file may unpack. Weights shrink by a tenth; only a bomb needs more."""
_PIECE = 1 << 20
_LZMA_MEMORY = 128 << 20
_DIRECTORY = 1 << 20  # some ten thousand tensors
_COMPRESSED = (
    *((bytes((0x78, level)), "zlib") for level in (0x01, 0x5E, 0x9C, 0xDA)),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ", "xz"),
    (b"]\0\0", "lzma"),
)

State = tuple[dict[str, Tensor], dict[str, Any]]


class ConversionError(ValueError):
    """A checkpoint that can't be converted; the message says what is wrong with it and what to do."""


def read(path: Path) -> State:
    """Return the state dict and the config, empty if there is none, of a checkpoint file.

    Args:
        path: written by torch.save (a zip archive, or what it wrote before), by joblib, compressed or not, or
            by safetensors.

    Raises:
        ConversionError: if it is none of these, is damaged, or holds anything but tensors and plain
            containers.
    """
    try:
        return _read(path)
    except (RefusedPickle, zipfile.BadZipFile, safetensors.SafetensorError, RuntimeError) as error:
        found = error if isinstance(error, RefusedPickle) else f"damaged data ({shown(error)})"
        raise ConversionError(
            f"{path} was not converted: it holds {found}. Expected a checkpoint of tensors, numbers, strings "
            "and plain containers; nothing of the file was run. Get it again from where it was published. If "
            "you trust it, load it with the code that made it and save its tensors alone: "
            "torch.save(state_dict, path)"
        ) from error


def _read(path: Path) -> State:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(32)
        file.seek(0)
        if start.startswith(b"PK"):
            return _split(_read_zip(path, size), size)
        if start.startswith(b"\x80"):
            return _split(_read_pickle(_mapped(file)), size)
        if start[8:9] == b"{":
            return _read_safetensors(path)
        for magic, kind in _COMPRESSED:
            if start.startswith(magic):
                with tempfile.TemporaryFile() as scratch:
                    unpacked = _unpack(file, kind, EXPANSION * size, scratch)
                    return _split(_read_pickle(_mapped(scratch)), unpacked)
    known = "nothing that torch.save, joblib or safetensors writes"
    if start.startswith(b'\x04"M\x18'):
        known = "lz4 data, which Python can't unpack by itself"
    elif start.startswith(b"version https://git-lfs"):
        known = "a git-lfs pointer; fetch the file itself with `git lfs pull`"
    elif start.startswith(b"<"):
        known = "a web page"
    raise RefusedPickle(known if size else "nothing")


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _split(content: Any, limit: int) -> State:
    expect(isinstance(content, Mapping), "something else than a dict of tensors")
    config = content.get("config")
    state = content.get("state_dict", content)
    expect(isinstance(state, Mapping), "a state_dict that is no dict")
    return tensors(state, limit), dict(config) if isinstance(config, Mapping) else {}


# --- pickles ------------------------------------------------------------------------------------------------


def _read_pickle(data: mmap.mmap) -> Any:
    budget = Budget()
    first = parse(Bytes(data), budget, nested=True)
    return parse_legacy(memoryview(data), budget) if first == MAGIC else first


def _unpack(file: BinaryIO, kind: str, limit: int, target: BinaryIO) -> int:
    total = 0
    try:
        for piece in _pieces(file, kind):
            total += len(piece)
            expect(total <= limit, f"{kind} data that unpacks to more than {EXPANSION} times the file's size")
            target.write(piece)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise RefusedPickle(f"damaged {kind} data ({shown(error)})") from error
    target.flush()
    target.seek(0)
    expect(target.read(1) == b"\x80", f"{kind} data that is no pickle")
    return total


def _pieces(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """Unpack by pieces of bounded size, whatever the data says of its own."""
    if kind in ("zlib", "gzip"):
        inflate = zlib.decompressobj(zlib.MAX_WBITS + 32)
        while not inflate.eof:
            data = inflate.unconsumed_tail or file.read(_PIECE)
            piece = inflate.decompress(data, _PIECE)
            expect(bool(data or piece), f"{kind} data without an end")
            yield piece
        rest = inflate.unused_data
    else:
        other: Any = bz2.BZ2Decompressor() if kind == "bz2" else lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
        while not other.eof:
            data = file.read(_PIECE) if other.needs_input else b""
            expect(bool(data) or not other.needs_input, f"{kind} data without an end")
            try:
                piece = other.decompress(data, _PIECE)
            except OSError as error:  # what bz2 makes of damaged data
                raise RefusedPickle(f"damaged {kind} data ({shown(error)})") from error
            yield piece
        rest = other.unused_data
    expect(not rest and not file.read(1), f"more behind its {kind} data")


def _read_zip(path: Path, size: int) -> Any:
    """Inspect a torch archive, then load it."""
    try:
        _inspect_zip(path, size)
    except RefusedPickle:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, struct.error) as error:  # zipfile's, of damaged data
        raise RefusedPickle(f"a damaged zip archive ({shown(error)})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251
    except Exception as error:  # torch's own restricted reader raises what it likes
        raise RefusedPickle(f"something that torch refuses ({str(error)[:200]!a})") from error


def _inspect_zip(path: Path, size: int) -> None:
    """Refuse all but what torch.save writes; compressed or overlapping entries could unpack to any size."""
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # torch looks names up in its own way, and must find what was inspected
        clear = len({name.lower() for name in entries}) == len(archive.infolist())
        expect(clear, "two entries of one name")
        total = sum(entry.file_size for entry in entries.values())
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        expect(total <= size and stored, "compressed or overlapping entries, which torch.save never writes")
        names = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        expect(len(names) == 1, "a zip archive that torch.save did not write")
        folder = names[0].removesuffix("data.pkl")
        expect(all(name.startswith(folder) for name in entries), "a zip archive of more than one folder")

        def persistent(identity: Any) -> Storage:
            key, storage = storage_of(identity)
            entry = entries.get(f"{folder}data/{key}")
            same = entry is not None and entry.file_size == storage.nbytes
            expect(same, "a storage of another size than its entry")
            return storage

        # the whole entry at once: it is stored, hence no larger than the file
        pickle = archive.read(names[0])
    parse(Bytes(pickle), Budget(), persistent=persistent)


def _check_directory(path: Path, size: int) -> None:
    """Expect a directory of a checkpoint's length right before the archive's end, where Python looks for it.

    torch goes by the offset that the archive states, so one file could have a directory for each of them.
    """
    with open(path, "rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read().rjust(98, b"\0")
    expect(
        tail[76:80] == b"PK\5\6" and tail[96:] == b"\0\0", "a zip archive without an end, or more behind it"
    )
    length, start = struct.unpack("<LL", tail[88:96])
    end = size - 22
    if tail[56:60] == b"PK\6\7":
        # offsets of 64 bits, in a record of their own
        end = size - 98
        expect(
            tail[:4] == b"PK\6\6" and struct.unpack("<Q", tail[64:72])[0] == end,
            "a zip archive with two ends",
        )
        length, start = struct.unpack("<QQ", tail[40:56])
    expect(start + length == end, "a zip archive with two directories")
    expect(length <= _DIRECTORY, f"a zip archive whose directory has more than {_DIRECTORY} bytes")


# --- safetensors --------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> State:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if METADATA_KEY in metadata:
        raise ConversionError(f"{path} is a generator file already: pass it as pretrained={str(path)!r}")
    try:
        config = strict_json.parse(metadata.get("config", "{}"))
    except ValueError as error:
        raise RefusedPickle(f"a config that is no JSON ({shown(error)})") from error
    state = safetensors.torch.load_file(path)
    return tensors(state, os.path.getsize(path)), config if isinstance(config, dict) else {}
