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
import json
import random
import signal
import sys
import tempfile
import time
import traceback
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
from tests.support.mutations import mutate_archive, mutate_pickle, mutate_safetensors, mutate_text
from tests.support.toy_generator import KIND, record, toy
from torch_geninit.convert import archives
from torch_geninit.convert.archives import ConversionError
from torch_geninit.graph.architecture import Architecture
from torch_geninit.hub import file, manifest
from torch_geninit.hub.config import KINDS

PACKAGE = str(Path(geninit.__file__).parent)
CASES = Path(__file__).parent / "fuzz_cases"
SECONDS_A_CASE = 10
MEMORY_A_CASE = 256 << 20
LARGEST_KEPT = 4096

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
    before = dict(KINDS)
    KINDS.update(KIND)
    try:
        yield
    finally:
        KINDS.update(before)


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
