"""Read tensors out of pickles without unpickling: a small machine for the few opcodes that checkpoints need.

Nothing is ever imported or called on a file's word. Names that occur in a pickle are looked up in a fixed
table of inert symbols, tensors become descriptions that are checked against the bytes that are really there,
and everything else is refused. Used by :mod:`torch_geninit.convert` alone.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

MAX_OPERATIONS = 2_000_000
"""A checkpoint's pickle has some ten thousand; each makes at most one small object."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file that torch.save wrote before zip archives, and of a storage within a pickle."""

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


class RefusedPickle(ValueError):
    """A pickle that holds anything but tensors and plain containers, or lies about its sizes."""


class Symbol(NamedTuple):
    """A name out of a pickle; never the object of that name."""

    module: str
    name: str


_ORDERED = Symbol("collections", "OrderedDict")
_TENSOR = Symbol("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Symbol("torch._utils", "_rebuild_parameter")
_NESTED = Symbol("torch.storage", "_load_from_bytes")
_KNOWN = {_ORDERED, _TENSOR, _PARAMETER, _NESTED, *(Symbol("torch", name) for name in STORAGES)}


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
        """Return the tensor, on the file's own bytes."""
        if self.storage.data is None:
            raise RefusedPickle("a tensor whose values are not in the file")
        if not self.storage.numel:
            return torch.empty(self.size, dtype=self.storage.dtype)
        with warnings.catch_warnings():
            # torch warns that the bytes can't be written to; nobody writes to them
            warnings.simplefilter("ignore")
            flat = torch.frombuffer(self.storage.data, dtype=self.storage.dtype, count=self.storage.numel)
        if flat.data_ptr() % self.storage.dtype.itemsize:
            flat = flat.clone()
        return flat.as_strided(self.size, self.stride, self.offset)


Persistent = Callable[[Any], Any]


def parse(stream: BinaryIO, *, persistent: Persistent | None = None, nested: bool = False) -> Any:
    """Read one pickle from ``stream`` and leave the position behind it.

    Args:
        stream: must return no more than it holds, whatever number of bytes it is asked for.
        persistent: turns a persistent id (of torch.save) into an object; without it there may be none.
        nested: whether storages may be pickled within (as joblib files have them).

    Raises:
        RefusedPickle: for anything but tensors and plain containers.
    """
    machine = _Machine(persistent, nested)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPERATIONS:
                raise RefusedPickle(f"more than {MAX_OPERATIONS} operations")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except RefusedPickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise RefusedPickle(f"a damaged pickle ({type(error).__name__}: {str(error)[:100]})") from error
    raise RefusedPickle("a pickle without an end")


_PUSH = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(self, persistent: Persistent | None, nested: bool) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self.nested = nested

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "EMPTY_LIST":
            self.stack.append([])
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name == "TUPLE":
            items = self.since_mark()
            self.stack.append(tuple(items))
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = [self.pop() for _ in range(count)]
            self.stack.append(tuple(reversed(items)))
        elif name == "APPEND":
            self._append([self.pop()])
        elif name == "APPENDS":
            self._append(self.since_mark())
        elif name == "SETITEM":
            value = self.pop()
            self._set([self.pop(), value])
        elif name == "SETITEMS":
            self._set(self.since_mark())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self._symbol(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            symbol = self.pop()
            self._symbol(self.pop(), symbol)
        elif name == "REDUCE":
            arguments = self.pop()
            self.stack.append(self._rebuild(self.pop(), arguments))
        elif name == "BUILD":
            # the attribute _metadata of a state dict
            self.pop()
            _expect(type(self.stack[-1]) is dict, "an object with a state of its own")
        elif name == "BINPERSID":
            _expect(self.persistent is not None, "a reference to something outside")
            self.stack.append(self.persistent(self.pop()))  # type: ignore[misc]
        else:
            raise RefusedPickle(f"the operation {name}, which no checkpoint of tensors needs")

    def _append(self, items: list[Any]) -> None:
        _expect(type(self.stack[-1]) is list, "items for something that is no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _expect(type(target) is dict and len(items) % 2 == 0, "items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # keys of other types may take for ever, or the whole C stack, to hash
            _expect(type(key) in (str, int), "a key that is neither a string nor a number")
            target[key] = value

    def _symbol(self, module: Any, name: Any) -> None:
        known = type(module) is str and type(name) is str and Symbol(module, name) in _KNOWN
        _expect(known, f"the name {str(module)[:60]}.{str(name)[:60]}, which could be any code")
        self.stack.append(Symbol(module, name))

    def _rebuild(self, symbol: Any, arguments: Any) -> Any:
        _expect(
            type(symbol) is Symbol and type(arguments) is tuple, "a call of something that is no known name"
        )
        if symbol == _ORDERED:
            rebuilt: dict[Any, Any] = {}
            self.stack.append(rebuilt)
            for pair in arguments[0] if arguments else ():
                self._set(list(pair))
            return self.pop()
        if symbol == _TENSOR:
            return _describe(*arguments[:4])
        if symbol == _PARAMETER:
            _expect(type(arguments[0]) is Described, "a parameter that is no tensor")
            return arguments[0]
        if symbol == _NESTED and self.nested:
            _expect(type(arguments[0]) is bytes, "a storage that is no bytes")
            return _nested_storage(arguments[0])
        raise RefusedPickle(f"a call of {symbol.module}.{symbol.name}")


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise RefusedPickle(found)


def _describe(storage: Any, offset: Any, size: Any, stride: Any) -> Described:
    _expect(type(storage) is Storage, "a tensor without a storage")
    numbers = [offset, *size, *stride]
    _expect(
        type(size) is tuple
        and type(stride) is tuple
        and len(size) == len(stride) <= 8
        and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers),
        "a tensor with an impossible shape",
    )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    _expect(
        0 in size or (last < storage.numel and prod(size) <= storage.numel),
        "a tensor larger than its storage",
    )
    return Described(storage, offset, size, stride)


def storage_of(identity: Any) -> tuple[str, Storage]:
    """Return (key, storage) of a persistent id ("storage", type, key, location, number of elements, ...)."""
    _expect(
        type(identity) is tuple
        and len(identity) in (5, 6)
        and identity[0] == "storage"
        and type(identity[1]) is Symbol
        and identity[1].name in STORAGES
        and type(identity[2]) is str
        and type(identity[4]) is int
        and 0 <= identity[4] < 1 << 48
        and (len(identity) == 5 or identity[5] is None),
        "a reference to something that is no plain storage",
    )
    return identity[2], Storage(STORAGES[identity[1].name], identity[4])


def parse_legacy(data: memoryview) -> Any:
    """Read what torch.save wrote before zip archives: four pickles, a list of keys, and the storages' bytes.

    The bytes of the storages are not copied.
    """
    stream = io.BytesIO(data)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        key, storage = storage_of(identity)
        known = storages.setdefault(key, storage)
        _expect((known.dtype, known.numel) == (storage.dtype, storage.numel), "a storage of two sizes")
        return known

    _expect(parse(stream) == MAGIC, "something else than a file of torch.save")
    _expect(parse(stream) == 1001, "an unknown version of torch.save")
    system = parse(stream)
    _expect(isinstance(system, dict) and system.get("little_endian") is True, "big-endian values")
    result = parse(stream, persistent=persistent)
    keys = parse(stream)
    named = type(keys) is list and all(type(key) is str for key in keys) and sorted(keys) == sorted(storages)
    _expect(named, "storages other than named")
    position = stream.tell()
    for key in keys:
        storage = storages[key]
        _expect(position + 8 <= len(data), "the end of the file within a storage")
        (numel,) = struct.unpack_from("<q", data, position)
        position += 8
        _expect(
            numel == storage.numel and position + storage.nbytes <= len(data),
            "a storage larger than the file",
        )
        storage.data = data[position : position + storage.nbytes]
        position += storage.nbytes
    return result


def _nested_storage(data: bytes) -> Storage:
    storage = parse_legacy(memoryview(data))
    _expect(type(storage) is Storage, "a nested pickle that is no storage")
    return storage  # type: ignore[no-any-return]


def tensors(value: Mapping[Any, Any], limit: int) -> dict[str, Tensor]:
    """Return the tensors of a state dict, together no larger than ``limit`` bytes."""
    total = 0
    result = {}
    for name, item in value.items():
        _expect(type(name) is str and type(item) is Described, f"{str(name)[:60]!r}, which is no tensor")
        total += prod(item.size) * item.storage.dtype.itemsize
        _expect(total <= limit, "more values than the file has bytes")
        result[name] = item.tensor()
    return result
