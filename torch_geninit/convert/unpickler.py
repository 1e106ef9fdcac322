"""Read tensors out of pickles without unpickling: a small machine for the few opcodes that checkpoints need.

Nothing is ever imported or called on a file's word. Names that occur in a pickle are looked up in a fixed
table of inert symbols, tensors become descriptions that are checked against the bytes that are really there,
and everything else is refused. Used by :mod:`torch_geninit.convert` alone.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable
from typing import Any, cast

from torch_geninit.convert.tensors import (
    STORAGES,
    Described,
    RefusedPickle,
    Storage,
    Symbol,
    describe,
    expect,
    shown,
    storage_of,
)

MAX_OPERATIONS = 300_000
"""In a file, pickles within pickles included. The largest checkpoint has 32,000, with its optimizer 117,000.
Each makes at most one small object, and 64 bytes of one count as one more, so this many take less than 50 MB.
"""
MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file that torch.save wrote before zip archives, and of a storage within a pickle."""

_ORDERED = Symbol("collections", "OrderedDict")
_TENSOR = Symbol("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Symbol("torch._utils", "_rebuild_parameter")
_NESTED = Symbol("torch.storage", "_load_from_bytes")
_KNOWN = {_ORDERED, _TENSOR, _PARAMETER, _NESTED, *(Symbol("torch", name) for name in STORAGES)}


class Piece:
    """Bytes too many for a name or a number. Nothing but a storage is made of them, and without a copy."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)


class Bytes:
    """A stream over a buffer that returns no more than there is, and long pieces as views of it."""

    long = 1 << 12

    def __init__(self, data: Any) -> None:
        self.data, self.position = memoryview(data), 0

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes | Piece:
        piece = self.data[self.position : self.position + size]
        self.position += len(piece)
        return Piece(piece) if size > self.long else bytes(piece)

    def readline(self) -> bytes:
        piece = bytes(self.data[self.position : self.position + self.long])
        line = piece[: piece.find(b"\n") + 1] or piece
        self.position += len(line)
        return line


class Budget:
    """Operations that are left to a file."""

    def __init__(self) -> None:
        self.left = MAX_OPERATIONS

    def spend(self, size: int = 0) -> None:
        self.left -= 1 + size // 64
        expect(self.left >= 0, f"more than {MAX_OPERATIONS} operations")


Persistent = Callable[[Any], Any]


def parse(
    stream: Bytes, budget: Budget, *, persistent: Persistent | None = None, nested: bool = False
) -> Any:
    """Read one pickle from ``stream`` and leave the position behind it.

    Args:
        stream: of the file, or of a part of it.
        budget: of the whole file.
        persistent: turns a persistent id (of torch.save) into an object; without it there may be none.
        nested: whether storages may be pickled within (as joblib files have them).

    Raises:
        RefusedPickle: for anything but tensors and plain containers.
    """
    machine = _Machine(budget, persistent, nested)
    try:
        for opcode, argument, _ in pickletools.genops(cast("Any", stream)):
            budget.spend(sys.getsizeof(argument))
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except RefusedPickle:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        struct.error,
        OverflowError,
    ) as error:
        raise RefusedPickle(f"a damaged pickle ({type(error).__name__}: {shown(error)})") from error
    raise RefusedPickle("a pickle without an end")


def parse_legacy(data: memoryview, budget: Budget) -> Any:
    """Read what torch.save wrote before zip archives: four pickles, a list of keys, and the storages' bytes.

    The bytes of the storages are not copied.
    """
    stream = Bytes(data)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        key, storage = storage_of(identity)
        known = storages.setdefault(key, storage)
        expect((known.dtype, known.numel) == (storage.dtype, storage.numel), "a storage of two sizes")
        return known

    expect(parse(stream, budget) == MAGIC, "something else than a file of torch.save")
    expect(parse(stream, budget) == 1001, "an unknown version of torch.save")
    system = parse(stream, budget)
    expect(isinstance(system, dict) and system.get("little_endian") is True, "big-endian values")
    result = parse(stream, budget, persistent=persistent)
    keys = parse(stream, budget)
    named = type(keys) is list and all(type(key) is str for key in keys) and sorted(keys) == sorted(storages)
    expect(named, "storages other than named")
    position = stream.tell()
    for key in keys:
        storage = storages[key]
        expect(position + 8 <= len(data), "the end of the file within a storage")
        (numel,) = struct.unpack_from("<q", data, position)
        position += 8
        expect(
            numel == storage.numel and position + storage.nbytes <= len(data),
            "a storage larger than the file",
        )
        storage.data = data[position : position + storage.nbytes]
        position += storage.nbytes
    return result


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
    def __init__(self, budget: Budget, persistent: Persistent | None, nested: bool) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget
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
            expect(type(self.stack[-1]) is dict, "an object with a state of its own")
        elif name == "BINPERSID":
            expect(self.persistent is not None, "a reference to something outside")
            self.stack.append(self.persistent(self.pop()))  # type: ignore[misc]
        else:
            raise RefusedPickle(f"the operation {name}, which no checkpoint of tensors needs")

    def _append(self, items: list[Any]) -> None:
        expect(type(self.stack[-1]) is list, "items for something that is no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        expect(type(target) is dict and len(items) % 2 == 0, "items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # keys of other types may take for ever, or the whole C stack, to hash
            expect(type(key) in (str, int), "a key that is neither a string nor a number")
            target[key] = value

    def _symbol(self, module: Any, name: Any) -> None:
        known = type(module) is str and type(name) is str and Symbol(module, name) in _KNOWN
        expect(known, f"the name '{shown(module)}.{shown(name)}', which could be any code")
        self.stack.append(Symbol(module, name))

    def _rebuild(self, symbol: Any, arguments: Any) -> Any:
        expect(
            type(symbol) is Symbol and type(arguments) is tuple, "a call of something that is no known name"
        )
        if symbol == _ORDERED:
            rebuilt: dict[Any, Any] = {}
            self.stack.append(rebuilt)
            for pair in arguments[0] if arguments else ():
                # one list may be given to many calls
                self.budget.spend()
                expect(type(pair) in (tuple, list) and len(pair) == 2, "items that are no pairs")
                self._set(list(pair))
            return self.pop()
        if symbol == _TENSOR:
            return describe(*arguments[:4])
        if symbol == _PARAMETER:
            expect(type(arguments[0]) is Described, "a parameter that is no tensor")
            return arguments[0]
        if symbol == _NESTED and self.nested:
            found = arguments[0]
            expect(isinstance(found, bytes | Piece), "a storage that is no bytes")
            data = found.data if isinstance(found, Piece) else memoryview(found)
            storage = parse_legacy(data, self.budget)
            expect(type(storage) is Storage, "a nested pickle that is no storage")
            return storage
        raise RefusedPickle(f"a call of {symbol.module}.{symbol.name}")
