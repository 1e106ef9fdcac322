"""Mutations of sound input, one for each format: JSON, bytes, text, safetensors, pickles, archives."""

from __future__ import annotations

import io
import json
import pickletools
import random
import zipfile
from typing import Any

from tests.support.toy_generator import pack

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    16,
    255,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**9,
    10**30,
    -(2**63),
    0.5,
    1e308,
]
VALUES = [None, True, False, "", "a", "..", "/etc/passwd", "main", "\0", "é" * 50, [], {}, [[]], *NUMBERS]


# Mutations. Each takes input and a source of chance and returns other input.


class Pairs(list[Any]):
    """The entries of a JSON object, which need not differ in their keys."""


def written(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{written(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def mutate_json(text: str, chance: random.Random) -> str:
    """Change one place of a JSON text, or of a JSON text in one of its strings."""
    try:
        data = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return mutate_bytes(text.encode(errors="replace"), chance).decode(errors="replace")
    # Each place: the list that holds it, and its index there; of an object's entry, the pair.
    places: list[tuple[list[Any], int]] = []
    pending = [data]
    while pending:
        item = pending.pop()
        if isinstance(item, Pairs):
            item[:] = [list(pair) for pair in item]
            pending += [pair[1] for pair in item]
            places += [(pair, 1) for pair in item] + [(item, index) for index in range(len(item))]
        elif isinstance(item, list):
            pending += item
            places += [(item, index) for index in range(len(item))]
    if not places:
        return written(chance.choice(VALUES))
    holder, index = chance.choice(places)
    old = holder[index]
    how = chance.randrange(6)
    if isinstance(holder, Pairs):
        if how < 2:
            del holder[index]
        elif how < 4:
            holder.insert(chance.randrange(len(holder) + 1), [old[0], chance.choice([old[1], *VALUES])])
        else:
            old[0] = chance.choice([chance.choice(holder)[0], "x", ""])
    elif isinstance(old, str) and old.startswith("{") and how:
        holder[index] = mutate_json(old, chance)
    elif type(old) is int and how < 3:
        holder[index] = old + chance.choice([-1, 1, 8, -old * 2, old, old << 32])
    elif how < 5:
        other, place = chance.choice(places)
        holder[index] = chance.choice([*VALUES, other[place]]) if not isinstance(other, Pairs) else None
    else:
        holder[index] = [old] * chance.choice([2, 17, 300])
    try:
        return written(data)
    except RecursionError:  # a place moved into itself
        return text


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        how = chance.randrange(5)
        if how == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            del changed[at : at + chance.choice([1, 2, 8, 64])]
        elif how == 2:
            start = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + chance.choice([1, 4, 32])]
        elif how == 3:
            size = chance.choice([1, 2, 4, 8])
            changed[at : at + size] = chance.choice([0, 1, -1, 255, 1 << (8 * size - 1)]).to_bytes(
                size + 1, "little", signed=True
            )[:size]
        elif at and chance.randrange(8) == 0:
            del changed[at:]
    return bytes(changed)


def mutate_text(content: bytes, chance: random.Random) -> bytes:
    if chance.randrange(4) == 0:
        return mutate_bytes(content, chance)
    return mutate_json(content.decode(errors="surrogateescape"), chance).encode(errors="surrogateescape")


def mutate_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Change the header, and mostly say how long it is now."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    how = chance.randrange(8)
    if how == 0:
        return mutate_bytes(content, chance)
    if how == 1:
        return pack(header, mutate_bytes(data, chance))
    changed = mutate_text(header, chance)
    return pack(changed, data, length=length if how == 2 else None)


def mutate_pickle(content: bytes, chance: random.Random) -> bytes:
    """Remove, repeat or move whole operations, or change bytes."""
    cuts = [0]
    try:
        cuts += [place for _, _, place in pickletools.genops(content) if place]
    except (ValueError, IndexError, UnicodeError, KeyError, OverflowError):
        pass
    if len(cuts) < 3 or chance.randrange(3) == 0:
        return mutate_bytes(content, chance)
    pieces = [content[a:b] for a, b in zip(cuts, [*cuts[1:], len(content)], strict=True)]
    for _ in range(chance.randint(1, 3)):
        at, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        how = chance.randrange(4)
        if how == 0 and len(pieces) > 1:
            del pieces[at]
        elif how == 1:
            pieces.insert(at, pieces[other])
        elif how == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            name, argument = chance.choice(OPERATIONS)
            pieces.insert(at, name + argument)
    return b"".join(pieces)


OPERATIONS = [
    *((bytes([code]), b"") for code in b"0()t}]NusaeRbQ\x93\x94\x81"),
    (b"K", b"\x07"),
    (b"J", b"\xff\xff\xff\x7f"),
    (b"\x8a", b"\x09" + b"\xff" * 8 + b"\0"),
    (b"G", b"\x7f\xf0" + b"\0" * 6),
    (b"h", b"\0"),
    (b"q", b"\0"),
    (b"c", b"os\nsystem\n"),
    (b"c", b"torch._utils\n_rebuild_tensor_v2\n"),
    (b"c", b"collections\nOrderedDict\n"),
    (b"c", b"torch.storage\n_load_from_bytes\n"),
    (b"\x8c", b"\x02os"),
    (b"B", b"\xff\xff\xff\x7f"),
    (b"\x8e", b"\xff" * 8),
    (b"X", b"\xff\xff\xff\xff"),
]
"""Operations of pickle's machine and arguments, to be put anywhere."""


def mutate_archive(content: bytes, chance: random.Random) -> bytes:
    """Change the pickle of a zip archive and pack it again, or the archive's own bytes."""
    if chance.randrange(4) == 0:
        return mutate_bytes(content, chance)
    try:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                entry = old.read(name)
                if name.endswith(".pkl"):
                    entry = mutate_pickle(entry, chance)
                elif chance.randrange(10) == 0:
                    entry = mutate_bytes(entry, chance)
                new.writestr(name, entry)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return mutate_bytes(content, chance)
    return target.getvalue()
