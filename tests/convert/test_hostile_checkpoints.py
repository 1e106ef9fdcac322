"""What hostile and damaged checkpoint files can't do to the converter: run anything, fill memory, or pass."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.ghn_checkpoints import PACKED, PICKLES, joblib_dump, legacy_dump, original
from tests.support.hostile_pickles import (
    HEAD,
    Described,
    Storage,
    costly,
    deep,
    false_sizes,
    legacy_storage,
    long_pieces,
    other_operations,
    running,
)
from torch_geninit.convert.__main__ import ConversionError, convert

NOWHERE = Path("/nowhere")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


@contextmanager
def little_memory(most: int = 64 << 20) -> Iterator[None]:
    """Expect that the process grows no larger than ``most`` bytes more, torch's tensors included."""

    def status(entry: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the file is refused all the same
        yield
        return
    before = status("VmRSS")
    yield
    assert status("VmHWM") - before < most


def refused(content: bytes | None, folder: Path, said: str | None = None) -> None:
    """Expect that the file ``checkpoint``, or what it is made of here, is refused without a trace."""
    if content is not None:
        (folder / "checkpoint").write_bytes(content)
    with little_memory(), pytest.raises(ConversionError, match=said):
        convert(folder / "checkpoint", folder / "ghn.safetensors")
    assert not (folder / "ran").exists()
    assert not (folder / "ghn.safetensors").exists()


# --- pickles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", running(NOWHERE))
def test_code_is_not_run(way: str, tmp_path: Path) -> None:
    refused(running(tmp_path / "ran")[way], tmp_path)


def test_code_does_run_where_it_is_believed(tmp_path: Path) -> None:
    """The test above would prove nothing if its files were harmless."""
    for way, content in running(tmp_path / "ran").items():
        if way != "in a storage":  # torch asks for weights_only there
            pickle.loads(content)
            assert (tmp_path / "ran").exists(), way
            (tmp_path / "ran").unlink()


@pytest.mark.parametrize("what", other_operations())
def test_other_operations_and_names_are_refused(what: str, tmp_path: Path) -> None:
    refused(other_operations()[what], tmp_path)


@pytest.mark.parametrize("what", false_sizes())
def test_sizes_are_not_believed(what: str, tmp_path: Path) -> None:
    refused(false_sizes()[what], tmp_path)


@pytest.mark.parametrize("what", costly())
def test_operations_are_counted(what: str, tmp_path: Path) -> None:
    refused(costly()[what], tmp_path, r"more than \d+ operations")


@pytest.mark.parametrize("what", long_pieces())
def test_long_pieces_are_no_text_and_no_containers(what: str, tmp_path: Path) -> None:
    refused(long_pieces()[what], tmp_path)


@pytest.mark.parametrize("what", deep())
def test_deep_objects_are_not_followed(what: str, tmp_path: Path) -> None:
    refused(deep()[what], tmp_path)


def test_error_carries_no_command_for_the_terminal(tmp_path: Path) -> None:
    refused(HEAD + b"\x8c\x04\x1b[2J\x8c\x01x\x93.", tmp_path, r"the name '\\x1b\[2J\.x'")


@pytest.mark.parametrize("dump", [torch.save, legacy_dump])
def test_many_views_of_one_storage_are_no_way_to_fill_memory(
    dump: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    shared = torch.zeros(4096)
    dump({str(i): shared[:] for i in range(2000)}, tmp_path / "checkpoint")
    refused(None, tmp_path, "more values than the file has bytes")


def test_many_views_of_one_nested_storage_are_no_way_to_fill_memory(tmp_path: Path) -> None:
    shared = Storage(legacy_storage(1000, bytes(4000)))
    views = {str(i): Described(shared, (1000,), (1,)) for i in range(1000)}
    refused(pickle.dumps(views), tmp_path, "more values than the file has bytes")


# --- compressed pickles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKERS)
def test_bomb_is_cut_off(kind: str, tmp_path: Path) -> None:
    content = HEAD + b"B" + struct.pack("<I", 30 << 20) + bytes(30 << 20) + b"."
    refused(PACKERS[kind](content), tmp_path, "unpacks to more than 8 times")


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_code_is_not_run(kind: str, tmp_path: Path) -> None:
    refused(PACKERS[kind](running(tmp_path / "ran")["reduce"]), tmp_path, r"the name 'builtins\.exec'")


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "changed", "more"])
def test_damaged_packed_file_is_refused(kind: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    PACKED[kind](original("GHN-2"), path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "more":
        content += b"more"
    else:
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    refused(bytes(content), tmp_path, kind)


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_file_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    refused(PACKERS[kind](gzip.compress(HEAD + b"}.")), tmp_path, "data that is no pickle")


def test_dictionary_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    refused(lzma.compress(HEAD + b"}.", filters=filters), tmp_path, "limit")


# --- archives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["reduce", "in a config", "as a key", "dotted name"])
def test_code_in_a_torch_archive_is_not_run(way: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint", "w") as archive:
        archive.writestr("archive/data.pkl", running(tmp_path / "ran")[way])
        archive.writestr("archive/version", "3\n")
    refused(None, tmp_path, "which could be any code")


def rewritten(folder: Path, change: Callable[[str, bytes], bytes], **options: Any) -> None:
    """Save a checkpoint as torch does, and its entries again, changed."""
    saved = folder / "saved"
    torch.save(original("GHN-2"), saved)
    with (
        zipfile.ZipFile(saved) as source,
        zipfile.ZipFile(folder / "checkpoint", "w", **options) as archive,
    ):
        for entry in source.infolist():
            archive.writestr(entry.filename, change(entry.filename, source.read(entry)))


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    rewritten(tmp_path, lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    refused(None, tmp_path, "compressed or overlapping")


def test_archive_with_a_storage_of_another_size_is_refused(tmp_path: Path) -> None:
    rewritten(tmp_path, lambda name, content: content[:8] if "/data/" in name else content)
    refused(None, tmp_path, "another size than its entry")


def test_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    refused(None, tmp_path, r"torch\.save did not write")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["saved/data.pkl", "saved/DATA.PKL"])
def test_archive_with_two_pickles_is_refused(name: str, tmp_path: Path) -> None:
    """What is inspected must be what torch then loads."""
    rewritten(tmp_path, lambda name, content: content)
    with zipfile.ZipFile(tmp_path / "checkpoint", "a") as archive:
        archive.writestr(name, running(tmp_path / "ran")["reduce"])
    refused(None, tmp_path, "two entries of one name")


def test_archive_with_another_pickle_in_another_folder_is_refused(tmp_path: Path) -> None:
    """torch takes the folder of the first entry, and doesn't mind the case."""
    rewritten(tmp_path, lambda name, content: content)
    inspected = (tmp_path / "checkpoint").read_bytes()
    with zipfile.ZipFile(tmp_path / "checkpoint", "w") as archive:
        archive.writestr("a/DATA.PKL", running(tmp_path / "ran")["reduce"])
        with zipfile.ZipFile(io.BytesIO(inspected)) as source:
            for entry in source.infolist():
                archive.writestr(entry, source.read(entry))
    refused(None, tmp_path, "more than one folder")


def archive_of(pickle: bytes, **options: Any) -> tuple[bytes, bytes, bytes]:
    """Make an archive of a pickle, in three parts: entries, directory, end."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    data = buffer.getvalue()
    start = struct.unpack("<L", data[-6:-2])[0]
    return data[:start], data[start:-22], data[-22:]


def test_archive_with_a_directory_for_python_and_another_for_torch_is_refused(tmp_path: Path) -> None:
    """The first would be inspected, and the second unpack to a thousand times the file's size."""
    large = HEAD + b"B" + struct.pack("<I", 128 << 20) + bytes(128 << 20) + b"."
    bomb, by_torch, end = archive_of(large, compression=zipfile.ZIP_DEFLATED)
    harmless, by_python, _ = archive_of(HEAD + b"}.")
    assert len(by_python) == len(by_torch)
    # Python adds to offsets how far the directory lies behind where it should
    moved, position = bytearray(by_python), 0
    shift = len(bomb) + len(by_torch) - (len(by_torch) + len(harmless))
    while position < len(moved):
        (offset,) = struct.unpack_from("<L", moved, position + 42)
        struct.pack_into("<L", moved, position + 42, offset + shift)
        position += 46 + struct.unpack_from("<H", moved, position + 28)[0]
    (tmp_path / "checkpoint").write_bytes(bomb + by_torch + harmless + moved + end)
    with zipfile.ZipFile(tmp_path / "checkpoint") as archive:
        assert archive.read("archive/data.pkl") == HEAD + b"}."
    refused(None, tmp_path, "two directories")


@pytest.mark.parametrize("behind", [b"x", b"PK\5\6" + bytes(18)])
def test_archive_with_something_behind_it_is_refused(behind: bytes, tmp_path: Path) -> None:
    refused(b"".join(archive_of(HEAD + b"}.")) + behind, tmp_path, "a zip archive with")


def test_archive_of_many_entries_is_refused(tmp_path: Path) -> None:
    entries, directory, end = archive_of(HEAD + b"}.")
    directory *= 20_000
    end = end[:12] + struct.pack("<L", len(directory)) + end[16:]
    refused(entries + directory + end, tmp_path, "a zip archive whose directory has more than")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}, "args": argparse.Namespace(lr=1)},
        {"embed.weight": torch.eye(4).to_sparse()},
        {"embed.weight": torch.zeros(2, dtype=torch.complex64)},
        nn.Linear(2, 2),
    ],
)
def test_objects_in_a_torch_archive_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint")
    refused(None, tmp_path, "which could be any code")


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize("part", [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(part: float, form: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    PICKLES[form](original("GHN-2"), path)
    content = path.read_bytes()
    refused(content[: int(part * len(content))], tmp_path)


@pytest.mark.parametrize("dump", [joblib_dump, legacy_dump])
def test_file_damaged_anywhere_in_its_description_is_refused_or_read(
    dump: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    """A changed byte may change a value or a name; it must never end in another error."""
    path = tmp_path / "checkpoint"
    dump({"embed.weight": torch.zeros(3, 4), "x": [1, 2.0, None, True]}, path)
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        for change in (0x2E, 0xFF):
            path.write_bytes(content[:position] + bytes([change]) + content[position + 1 :])
            with pytest.raises(ConversionError):
                convert(path, tmp_path / "ghn.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it holds nothing"),
        (b"<!doctype html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "git lfs pull"),
        (b'\x04"M\x18' + bytes(20), "lz4"),
        (b"PK\x03\x04", "a zip archive without an end"),
        (struct.pack("<Q", 1 << 60) + b"{", "header"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "damaged data"),
        (bytes(1000), "nothing that torch.save, joblib or safetensors writes"),
    ],
)
def test_other_files_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    refused(content, tmp_path, said)


def test_storage_of_the_zoo_is_a_sound_one(tmp_path: Path) -> None:
    """Else the false sizes would be refused for another reason."""
    tensor = Described(Storage(legacy_storage(2, struct.pack("<2f", 1, 2))), (2,), (1,))
    refused(pickle.dumps({"embed.weight": tensor}), tmp_path, r"matrix 'embed\.weight', got \(2,\)")
