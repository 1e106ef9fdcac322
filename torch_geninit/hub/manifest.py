"""The manifest: which pretrained generators there are, where each comes from, and what it measured."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch_geninit._utils import strict_json
from torch_geninit._utils.checks import check_text, expect
from torch_geninit.hub.config import KINDS, check_input, check_vocabulary
from torch_geninit.hub.memo import Memo

SCHEMA = 1
FILENAME = "pretrained_manifest.json"
MAX_BYTES = 4 << 20

PACKAGE = Path(__file__).parents[1]
SHIPPED = PACKAGE / "pretrained"
"""Folder of the generators that come with the package."""


_READ: Memo[tuple[Record, ...]] = Memo(4)


class ManifestError(ValueError):
    """The manifest breaks its schema; the message names the record and the field."""


@dataclass(frozen=True, slots=True)
class Record:
    """One pretrained generator.

    Attributes:
        name: what ``pretrained=`` is given.
        kind: one of :data:`torch_geninit.hub.config.KINDS`.
        filename: of the .safetensors file, in ``torch_geninit/pretrained`` and in the Hub repository.
        sha256: of the file, 64 hex digits.
        size: of the file, in bytes.
        repo_id: Hub repository ``owner/name``; None while it is not published, and then it is never fetched.
        revision: commit of the repository, 40 hex digits, never a branch; None while it is not published.
        licence: of the weights, as an SPDX identifier.
        training_data: what it was trained on.
        architectures: that training saw.
        learning_rate: advice on how to train from what it makes.
        vocabulary: version of the vocabulary, and fingerprints of reference graphs.
        input: size of the images that generated networks expect, and their normalisation.
        numbers: what was measured, name -> number (or a nested object of numbers).
        command: how to train it again.
        seed: of that training.
        duration_seconds: of that training.
        core_hours: processor time of everything that led here, earlier stages and zoos included.
        machine: that training ran on.
    """

    name: str
    kind: str
    filename: str
    sha256: str
    size: int
    repo_id: str | None
    revision: str | None
    licence: str
    training_data: str
    architectures: str
    learning_rate: str
    vocabulary: Mapping[str, Any]
    input: Mapping[str, Any]
    numbers: Mapping[str, Any]
    command: str
    seed: int
    duration_seconds: float
    core_hours: float
    machine: str


def locate() -> Path:
    """Return the path of the manifest: inside an installed package, one folder up in a checkout."""
    inside = PACKAGE / FILENAME
    return inside if inside.exists() else PACKAGE.parent / FILENAME


def read(path: str | os.PathLike[str] | None = None) -> tuple[Record, ...]:
    """Read and check the manifest.

    Args:
        path: of a manifest; by default the package's own.

    Raises:
        ManifestError: naming the record and the field.

    Examples:
        >>> names = [record.name for record in read()]
    """
    return _READ.get(locate() if path is None else Path(path), _read)


def _read(path: Path) -> tuple[Record, ...]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ManifestError(
            f"{path}: the manifest can't be read ({error.strerror}); install torch-geninit again"
        ) from error
    return parse(text, str(path))


def parse(text: bytes | str, where: str = FILENAME) -> tuple[Record, ...]:
    """Parse a manifest; ``where`` names it in errors.

    Raises:
        ManifestError: naming the record and the field.
    """
    if len(text) > MAX_BYTES:
        raise ManifestError(f"{where}: expected at most {MAX_BYTES} bytes")
    try:
        data = strict_json.parse(text)
        _fields(data, ("schema", "generators"))
        schema, generators = data["schema"], data["generators"]
        if type(schema) is not int or schema != SCHEMA:
            raise ValueError(
                f"field 'schema': expected {SCHEMA}, got {schema!r}; it is of another torch-geninit"
            )
        expect(isinstance(generators, list), "field 'generators'", "a list of records", generators)
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
    records: dict[str, Record] = {}
    for index, entry in enumerate(generators):
        record = _record(entry, where, f"number {index}")
        if record.name in records:
            raise ManifestError(f"{where}: record {record.name!r}: field 'name': two records have this name")
        records[record.name] = record
    return tuple(records.values())


def update(record: Record, path: str | os.PathLike[str] | None = None) -> None:
    """Write ``record`` into the manifest, in place of the one of the same name or at the end.

    Raises:
        ManifestError: if the manifest or the new record breaks the schema; the file is then unchanged.
    """
    path = locate() if path is None else Path(path)
    _record(asdict(record), str(path), "new")
    records = {old.name: old for old in read(path)} | {record.name: record}
    text = (
        json.dumps({"schema": SCHEMA, "generators": [asdict(r) for r in records.values()]}, indent=2) + "\n"
    )
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _fields(entry: Any, names: tuple[str, ...]) -> None:
    expect(isinstance(entry, dict), "it", "an object", entry)
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"missing field {missing[0]!r}")
    unknown = [name for name in entry if name not in names]
    if unknown:
        raise ValueError(f"unknown field {unknown[0][:100]!r}; the schema has {', '.join(names)}")


def _record(entry: Any, where: str, label: str) -> Record:
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        label = repr(entry["name"][:100])
    try:
        _fields(entry, tuple(field.name for field in fields(Record)))
        for name, check in _CHECKS.items():
            check(f"field {name!r}", entry[name])
        if (entry["repo_id"] is None) != (entry["revision"] is None):
            raise ValueError("fields 'repo_id' and 'revision': expected both or neither to be null")
    except ValueError as error:
        raise ManifestError(f"{where}: record {label}: {error}") from error
    return Record(**entry)


def _matches(pattern: str, expected: str, *, optional: bool = False) -> Callable[[str, Any], None]:
    def check(what: str, value: Any) -> None:
        if not (optional and value is None):
            expect(isinstance(value, str) and re.fullmatch(pattern, value) is not None, what, expected, value)

    return check


def _check_kind(what: str, value: Any) -> None:
    expect(isinstance(value, str) and value in KINDS, what, f"one of {', '.join(KINDS)}", value)


def _check_size(what: str, value: Any) -> None:
    expect(type(value) is int and 0 < value < 1 << 40, what, "a number of bytes", value)


def _check_seed(what: str, value: Any) -> None:
    expect(type(value) is int and 0 <= value < 1 << 64, what, "an integer from 0", value)


def _check_time(unit: str) -> Callable[[str, Any], None]:
    def check(what: str, value: Any) -> None:
        expect(type(value) in (int, float) and math.isfinite(value) and value >= 0, what, unit, value)

    return check


def _check_numbers(what: str, value: Any, depth: int = 3) -> None:
    expect(isinstance(value, dict) and depth > 0, what, "an object of numbers, up to three deep", value)
    for key, item in value.items():
        if isinstance(item, dict):
            _check_numbers(f"{what}: {key[:100]!r}", item, depth - 1)
        else:
            values = item if isinstance(item, list) else [item]
            finite = all(type(v) in (int, float) and math.isfinite(v) for v in values)
            expect(finite, f"{what}: {key[:100]!r}", "a finite number or a list of them", item)


_WORD = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"

REPOSITORY = rf"{_WORD}/{_WORD}"
COMMIT = "[0-9a-f]{40}"

_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "name": _matches(r"[a-z0-9][a-z0-9.-]{0,63}", "lower-case letters, digits, dots and hyphens"),
    "kind": _check_kind,
    "filename": _matches(rf"{_WORD}\.safetensors", "a plain file name that ends in .safetensors"),
    "sha256": _matches(r"[0-9a-f]{64}", "64 hex digits"),
    "size": _check_size,
    "repo_id": _matches(REPOSITORY, "'owner/name' (no address, no path) or null", optional=True),
    "revision": _matches(
        COMMIT, "a commit of 40 hex digits (a branch or tag can move) or null", optional=True
    ),
    "licence": check_text,
    "training_data": check_text,
    "architectures": check_text,
    "learning_rate": check_text,
    "vocabulary": check_vocabulary,
    "input": check_input,
    "numbers": _check_numbers,
    "command": check_text,
    "seed": _check_seed,
    "duration_seconds": _check_time("seconds"),
    "core_hours": _check_time("hours"),
    "machine": check_text,
}
