"""Throw mutations of sound input at each parser for a fixed time::

    python -m tests.support.fuzz [--seconds 300] [--seed 0] [--keep] [PARSER ...]

A mutation that is answered from a place in the code that none was answered from before is mutated further,
and ``--keep`` adds the small ones to ``tests/support/fuzz_cases``, which test_fuzz.py replays. What a parser
must not do with any input: fail with another error than its own, take long, take memory, leave files, or
return what its readers can't rely on.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickletools
import random
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch_geninit as geninit
from tests.support.ghn_checkpoints import joblib_dump, legacy_dump
from tests.support.toy_generator import KIND, pack, record, toy
from torch_geninit.convert import archives
from torch_geninit.convert.archives import ConversionError
from torch_geninit.graph.architecture import Architecture
from torch_geninit.hub import file, manifest

PACKAGE = str(Path(geninit.__file__).parent)
CASES = Path(__file__).parent / "fuzz_cases"
SECONDS_A_CASE = 10
MEMORY_A_CASE = 256 << 20
LARGEST_KEPT = 4096

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


# Parsers, and what may be relied on where one accepts.


def read_generator(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    generator = file.read(path)
    assert all(torch.isfinite(value).all() for value in generator.state_dict().values())
    assert generator.config == file.read_config(path)


def read_manifest(content: bytes, path: Path) -> None:
    for entry in manifest.parse(content):
        assert Path(entry.filename).name == entry.filename and "\\" not in entry.filename
        assert len(entry.sha256) == 64 and len(entry.revision or 40 * "0") == 40
        assert entry.repo_id is None or ".." not in entry.repo_id


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 10))


@cache
def tiny_ghn() -> Any:
    from tests.conftest import tiny_generator

    return tiny_generator("ghn")


def read_graph(content: bytes, path: Path) -> None:
    """A graph that is taken leads to weights, or to an error of the verb's before the first write."""
    architecture = Architecture.from_json(content)
    assert Architecture.from_json(architecture.to_json()) == architecture
    model = small()
    before = [parameter.clone() for parameter in model.parameters()]
    try:
        geninit.ghn_(model, graph=architecture, pretrained=tiny_ghn(), untrusted="generate", strict=True)
    except ValueError:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        raise
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def read_checkpoint(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    state, _ = archives.read(path)
    for tensor in state.values():
        assert tensor.untyped_storage().nbytes() <= len(content)
        tensor.sum()  # its memory is there


def saved(dump: Callable[[Any, Path], None]) -> bytes:
    tensors = {"embed.weight": torch.ones(3, 2), "gnn.bias": torch.arange(4.0)}
    tensors["shared"] = tensors["gnn.bias"][1:3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        dump({"state_dict": tensors, "config": {"weight_norm": True, "heads": [1, 2.5, None]}}, path)
        return path.read_bytes()


def generator_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "toy.safetensors")
        file.write(toy(), path)
        return path.read_bytes()


def plain_safetensors() -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"embed.weight": torch.ones(3, 2)}, {"config": '{"weight_norm": true}'})


def manifest_text() -> bytes:
    published = {"repo_id": "someone/toy", "revision": "0" * 40}
    records = [record(b"abc"), record(b"x", name="b", **published)]
    return json.dumps({"schema": 1, "generators": records}).encode()


@dataclass(frozen=True)
class Parser:
    """What is fuzzed: sound inputs, how they are changed, who reads them, and with which error it refuses."""

    read: Callable[[bytes, Path], None]
    refuses: type[Exception]
    mutate: Callable[[bytes, random.Random], bytes]
    sound: Sequence[Callable[[], bytes]]


PARSERS = {
    "generator": Parser(read_generator, file.GeneratorFileError, mutate_safetensors, [generator_file]),
    "manifest": Parser(read_manifest, manifest.ManifestError, mutate_text, [manifest_text]),
    "graph": Parser(read_graph, ValueError, mutate_text, [lambda: geninit.trace(small()).to_json().encode()]),
    "pickle": Parser(
        read_checkpoint,
        ConversionError,
        mutate_pickle,
        [lambda: saved(legacy_dump), lambda: saved(joblib_dump)],
    ),
    "archive": Parser(read_checkpoint, ConversionError, mutate_archive, [lambda: saved(torch.save)]),
    "safetensors": Parser(read_checkpoint, ConversionError, mutate_safetensors, [plain_safetensors]),
}


# The loop.


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes long, or makes the process much larger (on Linux)."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"took more than {SECONDS_A_CASE} s of processor time")

    before_handler = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_A_CASE)
    try:
        before = resident("VmRSS")
        reset = Path("/proc/self/clear_refs")
        if before:
            reset.write_text("5")
        yield
        grown = resident("VmHWM") - before
        assert grown < MEMORY_A_CASE, f"took {grown >> 20} MiB"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before_handler)


def resident(entry: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])


def answer(parser: Parser, content: bytes, folder: Path) -> tuple[str, ...]:
    """Let a parser read and return where in the package it refused; raises what is wrong with its answer."""
    try:
        with bounded():
            parser.read(content, folder / "input")
    except parser.refuses as error:
        assert len(str(error)) < 4000 + 2 * len(str(folder)), "an error as long as its cause"
        found: BaseException | None = error
        while found is not None and found.__cause__ is not None:
            found = found.__cause__
        frames = traceback.extract_tb(found.__traceback__ if found else None)
        own = [f"{frame.name}:{frame.lineno}" for frame in frames if frame.filename.startswith(PACKAGE)]
        result = (type(found).__name__, *own[-2:])
    else:
        result = ("accepted",)
    left = sorted(path.name for path in folder.iterdir())
    assert left in ([], ["input"]), f"left {left}"
    return result


@dataclass
class Report:
    tried: int = 0
    accepted: int = 0
    answers: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    failures: list[tuple[bytes, str]] = field(default_factory=list)


def fuzz(name: str, seconds: float, seed: int) -> Report:
    """Mutate for so long; the same seed tries the same inputs in the same order."""
    parser, chance, report = PARSERS[name], random.Random(f"{name} {seed}"), Report()
    pool = [make() for make in parser.sound]
    sound = len(pool)
    failed: set[str] = set()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        while time.monotonic() < end:
            # Half of them from sound inputs, whose mutations get deepest.
            first = pool[: sound if chance.randrange(2) else len(pool)]
            content = chance.choice(first)
            for _ in range(chance.choice([1, 1, 1, 2, 4])):
                content = parser.mutate(content, chance)
            report.tried += 1
            try:
                where = answer(parser, content, folder)
            except Exception as error:  # noqa: BLE001 - any other error is what is looked for
                place = traceback.extract_tb(error.__traceback__)[-1]
                if f"{type(error)} {place.filename}:{place.lineno}" not in failed:
                    failed.add(f"{type(error)} {place.filename}:{place.lineno}")
                    report.failures.append((content, traceback.format_exc()))
                continue
            report.accepted += where == ("accepted",)
            if where not in report.answers:
                report.answers[where] = content
                pool.append(content)
    return report


def keep(name: str, content: bytes) -> None:
    if len(content) <= LARGEST_KEPT:
        folder = CASES / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


@contextmanager
def toys() -> Iterator[None]:
    """Let files of the kind "ghn" be toys, which are small and quick."""
    before = dict(file.KINDS)
    file.KINDS.update(KIND)
    try:
        yield
    finally:
        file.KINDS.update(before)


def main() -> int:
    options = argparse.ArgumentParser(description="Fuzz parsers for a fixed time.")
    options.add_argument("parsers", nargs="*", metavar="PARSER", help=f"out of {', '.join(PARSERS)}; all")
    options.add_argument("--seconds", type=float, default=300, help="for each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", action="store_true", help="add what is new to tests/support/fuzz_cases")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    failures = 0
    for name in chosen.parsers or PARSERS:
        with toys():
            report = fuzz(name, chosen.seconds, chosen.seed)
        print(
            f"{name}: {report.tried} inputs, {report.accepted} accepted, {len(report.answers)} different "
            f"answers, {len(report.failures)} failures",
            flush=True,
        )
        for content, text in report.failures:
            print(f"--- {content[:300]!r}\n{text}", flush=True)
            keep(name, content)
        if chosen.keep:
            for content in report.answers.values():
                keep(name, content)
        failures += len(report.failures)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
