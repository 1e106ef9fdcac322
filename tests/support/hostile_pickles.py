"""Pickles that try to run code, to lie about sizes, or to cost far more than they are long."""

from __future__ import annotations

import collections
import io
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

HEAD = b"\x80\x04"


class Runs:
    """Unpickled by Python, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


class Inherits(dict):  # type: ignore[type-arg]
    pass


def legacy_storage(numel: int, data: bytes = b"") -> bytes:
    """Make what torch pickles as the bytes of one storage, of a size that ``data`` need not have."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch pickles tensors by a class that it calls deprecated
        storage = torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(4), dtype=torch.float32)
        torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    saved = buffer.getvalue()
    key = re.search(rb"X(.)\x00\x00\x00(\d{6,})", saved)
    assert key is not None
    changed = saved.replace(b"K\x01N", b"J" + struct.pack("<i", numel) + b"N")
    assert changed != saved or numel == 1
    return changed[:-12] + struct.pack("<q", numel) + data


class Storage:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)


class Described:
    def __init__(self, storage: Storage, size: Any, stride: Any, offset: Any = 0) -> None:
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"\x8c" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    """A name by STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def running(marker: Path) -> dict[str, bytes]:
    """Pickles that write the file ``marker`` where they are believed, by the way they take."""
    shell = text(f"touch {marker}")
    line = f"V touch {marker}\n".encode()
    nested = io.BytesIO()
    torch.save(Runs(marker), nested, _use_new_zipfile_serialization=False)
    lookup = name("builtins", "getattr") + name("builtins", "__import__") + text("os") + b"\x85R"
    believed = {
        "reduce": pickle.dumps({"embed.weight": Runs(marker)}),
        "reduce, protocol 0": pickle.dumps({"embed.weight": Runs(marker)}, protocol=0),
        "reduce, protocol 2": pickle.dumps({"embed.weight": Runs(marker)}, protocol=2),
        "in a config": pickle.dumps({"state_dict": {}, "config": {"hid": Runs(marker)}}),
        "as a key": HEAD + b"}" + pickle.dumps(Runs(marker))[2:-1] + b"K\x01s.",
        "getattr of an import": HEAD + lookup + text("system") + b"\x86R" + shell + b"\x85R.",
        "instance": HEAD + b"(" + line + b"ios\nsystem\n.",
        "object": HEAD + b"(" + name("os", "system") + shell + b"o.",
        "after the end of a frame": HEAD + b"\x95" + bytes(8) + name("os", "system") + shell + b"\x85R.",
        "dotted name": HEAD + name("subprocess", "os.system") + shell + b"\x85R.",
    }
    return believed | {"in a storage": pickle.dumps(Described(Storage(nested.getvalue()), (1,), (1,)))}


def odd_arguments() -> dict[str, bytes]:
    """Known names and what they are called with."""
    ordered, load = name("collections", "OrderedDict"), name("torch.storage", "_load_from_bytes")
    tensor, parameter = (name("torch._utils", f"_rebuild_{kind}") for kind in ("tensor_v2", "parameter"))
    return {
        "a list of arguments": ordered + b"]",
        "a number for pairs": ordered + b"K\x01\x85",
        "text for pairs": ordered + text("ab") + b"\x85",
        "text for a pair": ordered + text("ab") + b"\x85\x85",
        "three for a pair": ordered + b"K\x01K\x02K\x03\x87\x85\x85",
        "no arguments for a tensor": tensor + b")",
        "a tuple for a storage": tensor + b"())))t",
        "no arguments for a parameter": parameter + b")",
        "a parameter of a number": parameter + b"K\x01\x85",
        "no arguments for a storage": load + b")",
        "text for a storage": load + text("x") + b"\x85",
    }


def other_operations() -> dict[str, bytes]:
    """Operations and names that no checkpoint needs, each of which would be a way to code."""
    ordered = name("collections", "OrderedDict")
    return {
        "torch.load": HEAD + b"ctorch\nload\n" + text("x") + b"\x85R.",
        "a class": pickle.dumps(Inherits(x=1)),
        "NEWOBJ": HEAD + ordered + b")\x81.",
        "NEWOBJ_EX": HEAD + ordered + b")}\x92.",
        "NEWOBJ of a process": HEAD + name("subprocess", "Popen") + text("true") + b"\x85\x81.",
        "__setstate__": HEAD + ordered + b")R" + b"N" + b"}" + text("__setstate__") + b"Ns\x86b.",
        "state for a tuple": HEAD + b")}b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": HEAD + b"Px\n.",
        "BINPERSID": HEAD + text("x") + b"Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "set": HEAD + b"\x8f.",
        "name with a zero-width space": HEAD + name("torch._utils\u200b", "_rebuild_tensor_v2") + b".",
        "name in full width": HEAD + name("\uff4fs", "system") + b".",
        "name with a surrogate": HEAD + name("\ud800", "x") + b".",
        "name below a known one": HEAD + name("torch._utils", "_rebuild_tensor_v2.__globals__") + b".",
        "name that is no text": HEAD + b"K\x01K\x02\x93.",
        "call of a number": HEAD + b"K\x01)R.",
        "call of a storage type": HEAD + name("torch", "FloatStorage") + b")R.",
        "items for a tuple": HEAD + b")K\x01K\x02s.",
        "no end": HEAD + b"}",
        "empty stack": HEAD + b".",
        "number instead of a dict": HEAD + b"K\x01.",
        "itself as an item": HEAD + b"]\x94h\x00a.",
        "items for a name": HEAD + ordered + b"K\x01a.",
        "state for a list": HEAD + b"]}b.",
        "state for nothing": HEAD + b"b.",
        "name as a value": HEAD + b"}" + text("embed.weight") + ordered + b"s.",
        "name as a key": HEAD + b"}" + ordered + b"K\x01s.",
        **{f"call with {key}": HEAD + value + b"R." for key, value in odd_arguments().items()},
    }


def false_sizes() -> dict[str, bytes]:
    """Tensors and strings that are not as large as they say."""
    one = Storage(legacy_storage(1, b"\0\0\0\0"))
    shapes: dict[str, tuple[Any, ...]] = {
        "beyond its storage": ((2,), (1,)),
        "before its storage": ((1,), (1,), -1),
        "negative size": ((-1,), (1,)),
        "negative stride": ((1,), (-1,)),
        "one value a million times": ((10**6,), (0,)),
        "huge": ((2**62, 4), (0, 0)),
        "huge and empty": ((2**47, 2**47, 0), (1, 1, 1)),
        "real size": ((1.0,), (1,)),
        "true size": ((True,), (1,)),
        "no size": (None, None),
        "list for a size": ([1], [1]),
        "99 dimensions": ((1,) * 99, (1,) * 99),
    }
    found = {
        f"tensor: {key}": pickle.dumps({"embed.weight": Described(one, *arguments)})
        for key, arguments in shapes.items()
    }
    large = Storage(legacy_storage(2**31 - 1))
    return found | {
        "storage beyond the file": pickle.dumps({"embed.weight": Described(large, (1,), (1,))}),
        "string of 2^60 bytes": HEAD + b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytes of 2^60 bytes": HEAD + b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytearray of 2^40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "number of 2^31 bytes": HEAD + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "number of -5 bytes": HEAD + b"\x8b" + struct.pack("<i", -5) + b".",
        "memo index 2^32": HEAD + b"}r" + struct.pack("<I", 2**32 - 1) + b"0.",
        "long text number": HEAD + b"L" + b"9" * 10_000 + b"L\n.",
        "large number": HEAD + b"\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * (1 << 20) + b".",
    }


def long_pieces() -> dict[str, bytes]:
    """Pieces of the file that would take several times their length in memory, or be copied."""
    wide = "\U0001f600".encode() + bytes(16 << 20)
    large = b"\x8e" + struct.pack("<Q", 16 << 20) + bytes(16 << 20)
    return {
        "text": HEAD + b"\x8d" + struct.pack("<Q", len(wide)) + wide + b".",
        "line": HEAD + b"c" + wide + b"\nx\n.",
        "bytes for a pair": HEAD + name("collections", "OrderedDict") + large + b"\x85\x85R.",
        "bytes for pairs": HEAD + name("collections", "OrderedDict") + large + b"\x85R.",
    }


def costly() -> dict[str, bytes]:
    """Pickles of some megabytes at most that would take gigabytes or hours, by what is too many."""
    load, good = name("torch.storage", "_load_from_bytes"), legacy_storage(1, b"\0\0\0\0")
    stored = b"B" + struct.pack("<I", len(good)) + good
    pairs = b"".join(b"J" + struct.pack("<i", i) + b"K\x01\x86" for i in range(4000))
    call = b"h\x00h\x01\x85R"
    return {
        "marks": HEAD + b"(" * 600_000 + b".",
        "memos": HEAD + b"}" + b"\x94" * 600_000 + b".",
        "texts": HEAD + (b"X" + struct.pack("<I", 4004) + "\U0001f600".encode() + b"x" * 4000) * 5000 + b".",
        "numbers": HEAD + (b"\x8a\xff" + b"\x7f" * 255) * 90_000 + b".",
        "nesting": HEAD + b")" + b"\x85" * 600_000 + b".",
        "readings of one storage": HEAD + load + b"\x94" + stored + b"\x94(" + call * 20_000 + b"t.",
        "copies of one list": HEAD
        + name("collections", "OrderedDict")
        + b"\x94("
        + pairs
        + b"t\x94("
        + call * 1000
        + b"t.",
    }


def deep() -> dict[str, bytes]:
    """Pickles whose objects overflow the stack of who follows them, or double at every step."""
    return {
        "list": HEAD + b"]" * 20_000 + b"a" * 19_999 + b".",
        "key": HEAD + b"})" + b"\x85" * 200_000 + b"K\x01s.",
        "config": HEAD + b"}" + text("config") + b")" + b"\x85" * 20_000 + b"s.",
        "doubling": HEAD + b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + b".",
    }
