"""Conversion of published checkpoints, and what hostile files can't do to it."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_geninit import convert as conversion
from torch_geninit.convert import ConversionError, convert
from torch_geninit.generators.base import noise_stream
from torch_geninit.generators.file import read
from torch_geninit.generators.published import PublishedGHN
from torch_geninit.restricted_pickle import MAX_OPERATIONS, RefusedPickle, parse

SIZES: dict[str, Any] = {"width": 8, "channels": [16, 16], "virtual_edges": True, "layer_norm": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "GHN-1": {
        "family": 2,
        "kernel": 11,
        "layers": 0,
        "heads": 0,
        "virtual_edges": False,
        "layer_norm": False,
    },
    "GHN-2": {"family": 2, "kernel": 11, "layers": 0, "heads": 0},
    "GHN-3": {"family": 3, "kernel": 16, "layers": 2, "heads": 4, "virtual_edges": False},
}


def original(name: str) -> dict[str, Tensor]:
    """Make a state dict as the originals publish it."""
    sizes = {**SIZES, "weight_norm": name != "GHN-1", **FAMILIES[name]}
    generator = PublishedGHN({"sizes": sizes, "classes": [str(i) for i in range(10)]})
    stream = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=stream) for n, t in generator.state_dict().items()}
    if sizes["family"] == 2:
        for layer in ("decoder.conv.0", "decoder.conv.2", "decoder.class_layer_predictor.1"):
            state[f"{layer}.weight"] = state[f"{layer}.weight"][:, :, None, None]
    else:
        # as on the Hub
        for table in ("centrality_embed_in", "centrality_embed_out", "input_dist_embed"):
            state[f"{table}.weight"] = state.pop(f"gnn.0.{table}.weight")
    return state


def joblib_dump(content: Any, path: Path) -> None:
    pytest.importorskip("joblib").dump(content, path)


def legacy_dump(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def safetensors_dump(content: Any, path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(content, path)


def same(found: PublishedGHN, state: dict[str, Tensor]) -> bool:
    values = found.state_dict()
    renamed = {
        n if n in values else f"gnn.0.{n}": t.flatten(1) if t.ndim == 4 else t for n, t in state.items()
    }
    return set(values) == set(renamed) and all(torch.equal(values[n], t) for n, t in renamed.items())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dump", [torch.save, legacy_dump, joblib_dump, safetensors_dump])
def test_every_format_of_every_family_converts(
    name: str, dump: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    state = original(name)
    dump(state, tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors", licence="MIT")
    generator = read(tmp_path / "ghn.safetensors")
    assert isinstance(generator, PublishedGHN)
    assert same(generator, state)
    assert generator.card["licence"] == "MIT"
    expected = {**SIZES, "weight_norm": name != "GHN-1", **FAMILIES[name]}
    assert {key: generator.card["sizes"][key] for key in expected} == expected


@pytest.mark.parametrize("dump", [torch.save, legacy_dump, joblib_dump])
def test_checkpoint_with_config_converts(dump: Callable[[Any, Path], None], tmp_path: Path) -> None:
    state = original("GHN-2")
    config = {
        "hid": 8,
        "max_shape": (16, 16, 11, 11),
        "hypernet": "gatedgnn",
        "weight_norm": False,
        "lr": 1e-3,
    }
    dump(
        {"state_dict": collections.OrderedDict(state), "config": config, "epoch": 300},
        tmp_path / "checkpoint",
    )
    generator = convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors")
    assert same(generator, state)
    assert not generator.card["sizes"]["weight_norm"]


def test_module_state_dict_with_metadata_and_parameters_converts(tmp_path: Path) -> None:
    state = original("GHN-2")
    holder = nn.Module()
    for name, value in state.items():
        holder.register_parameter(name.replace(".", "/"), nn.Parameter(value))
    saved = collections.OrderedDict(
        (n.replace("/", "."), p) for n, p in holder.state_dict(keep_vars=True).items()
    )
    saved._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    for dump in (torch.save, legacy_dump, joblib_dump):
        dump(saved, tmp_path / "checkpoint")
        assert same(convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors"), state)


def test_tensors_that_share_a_storage_and_half_precision_convert(tmp_path: Path) -> None:
    state = original("GHN-2")
    both = torch.cat([state["ln.weight"], state["ln.bias"]]).half()
    state["ln.weight"], state["ln.bias"] = both[:8], both[8:]
    for dump in (torch.save, legacy_dump, joblib_dump):
        dump(state, tmp_path / "checkpoint")
        found = convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors").state_dict()
        assert torch.equal(found["ln.bias"], both[8:].float())


def test_converted_generator_predicts_as_the_unconverted(tmp_path: Path) -> None:
    state = original("GHN-3")
    joblib_dump(state, tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def values(generator: PublishedGHN) -> dict[str, Tensor]:
        return generator.decode(generator.trace(model), shapes, lambda name: noise_stream(0, name))

    found = read(tmp_path / "ghn.safetensors")
    assert isinstance(found, PublishedGHN)
    expected = values(conversion.build(state, {}))
    assert all(torch.equal(value, expected[name]) for name, value in values(found).items())


def test_command_line(tmp_path: Path) -> None:
    torch.save(original("GHN-2"), tmp_path / "in.pt")
    command = [sys.executable, "-m", "torch_geninit.convert", "in.pt", "out.safetensors", "--licence", "MIT"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"wrote out\.safetensors: GHN-2, \d+ values, 10 classes\n", done.stdout)
    assert read(tmp_path / "out.safetensors").card["licence"] == "MIT"


def test_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conversion.main([str(tmp_path / "missing.pt"), str(tmp_path / "out.safetensors")]) == 1
    assert "neither a file nor" in capsys.readouterr().err


def test_source_on_the_hub_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_geninit import download

    asked = []

    def fetch(source: download.Source) -> Path:
        asked.append((source.repo_id, source.filename, source.revision))
        return tmp_path / "checkpoint"

    torch.save(original("GHN-3"), tmp_path / "checkpoint")
    monkeypatch.setattr(download, "fetch", fetch)
    revision = "0123456789" * 4
    generator = convert(f"some-one/ghn3:folder/ghn.pt@{revision}", tmp_path / "ghn.safetensors")
    assert asked == [("some-one/ghn3", "folder/ghn.pt", revision)]
    assert generator.card["trained"]["source"] == f"some-one/ghn3:folder/ghn.pt@{revision}"


# --- what is no GHN -----------------------------------------------------------------------------------------


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "checkpoint", tmp_path / "ghn.safetensors"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ConversionError, match=r"not of a GHN: 'embed\.weight'"):
        convert(path, target)
    state = original("GHN-2")
    torch.save({**state, "more.weight": torch.zeros(2)}, path)
    with pytest.raises(ConversionError, match=r"'more\.weight': expected None, got \(2,\)"):
        convert(path, target)
    state["ln.weight"] = torch.zeros(9)
    torch.save(state, path)
    with pytest.raises(ConversionError, match=r"'ln\.weight': expected \(8,\), got \(9,\)"):
        convert(path, target)
    state["ln.weight"] = torch.full((8,), float("nan"))
    torch.save(state, path)
    with pytest.raises(ConversionError, match="NaN"):
        convert(path, target)
    torch.save({"state_dict": original("GHN-2"), "config": {"decoder": "mlp"}}, path)
    with pytest.raises(ConversionError, match="decoder is not 'conv'"):
        convert(path, target)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ConversionError, match="neither a torch file"):
        convert(path, target)
    assert not target.exists()


# --- hostile files ------------------------------------------------------------------------------------------


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
    def __init__(self, data: bytes, size: Any, stride: Any, offset: int = 0) -> None:
        self.arguments = (Storage(data), offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickles(tmp_path: Path) -> dict[str, bytes]:
    """Hostile pickles by what they try."""
    marker = tmp_path / "ran"
    one = legacy_storage(1, b"\0\0\0\0")
    nested = io.BytesIO()
    torch.save(Runs(marker), nested, _use_new_zipfile_serialization=False)
    deep = b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b"."
    deep_key = b"\x80\x04}" + b")" + b"\x85" * 20_000 + b"K\x01s."
    return {
        "code": pickle.dumps({"embed.weight": Runs(marker)}),
        "code, protocol 0": pickle.dumps({"embed.weight": Runs(marker)}, protocol=0),
        "code, protocol 2": pickle.dumps({"embed.weight": Runs(marker)}, protocol=2),
        "code in a storage": pickle.dumps({"embed.weight": Described(nested.getvalue(), (1,), (1,))}),
        "code in a config": pickle.dumps({"state_dict": {}, "config": {"hid": Runs(marker)}}),
        "code as a key": pickle.dumps({"x": 1})[:2] + b"}" + pickle.dumps(Runs(marker))[2:-1] + b"K\x01s.",
        "torch.load": b"\x80\x04c" + b"torch\nload\n" + b"\x8c\x01x\x85R.",
        "a class": pickle.dumps(Inherits(x=1)),
        "an instance by opcode": b"(ios\nsystem\n.",
        "an extension code": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x04\x8c\x01xQ.",
        "tensor beyond its storage": pickle.dumps({"embed.weight": Described(one, (2,), (1,))}),
        "tensor before its storage": pickle.dumps({"embed.weight": Described(one, (1,), (1,), -1)}),
        "tensor of one value a million times": pickle.dumps({"embed.weight": Described(one, (10**6,), (0,))}),
        "tensor of huge extents": pickle.dumps({"embed.weight": Described(one, (2**62, 4), (0, 0))}),
        "storage beyond the file": pickle.dumps(
            {"embed.weight": Described(legacy_storage(2**31 - 1), (1,), (1,))}
        ),
        "string of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytes of 2^60 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytearray of 2^40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "memo index 2^32": b"\x80\x04}r" + struct.pack("<I", 2**32 - 1) + b"0.",
        "deep list": deep,
        "deep key": deep_key,
        "no end": b"\x80\x04}",
        "empty stack": b"\x80\x04.",
        "set": b"\x80\x04\x8f.",
        "wrong target": b"\x80\x04)K\x01K\x02s.",
        "call of a number": b"\x80\x04K\x01)R.",
        "long text number": b"L" + b"9" * 10_000 + b"L\n.",
        "number instead of a dict": b"\x80\x04K\x01.",
    }


NAMES = list(pickles(Path("/nowhere")))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickle_is_refused(name: str, tmp_path: Path) -> None:
    content = pickles(tmp_path)[name]
    path, target = tmp_path / "checkpoint", tmp_path / "ghn.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ConversionError):
            convert(path, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
    assert not (tmp_path / "ran").exists()
    assert not target.exists()


def test_hostile_pickles_do_run_where_they_are_believed(tmp_path: Path) -> None:
    """The test above would prove nothing if its files were harmless."""
    for name in ("code", "code, protocol 0", "code, protocol 2", "code in a config", "code as a key"):
        pickle.loads(pickles(tmp_path)[name])
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()


@pytest.mark.parametrize("name", ["code", "a class", "torch.load", "set", "code as a key"])
def test_hostile_pickle_in_a_torch_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickles(tmp_path)[name])
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ConversionError):
        convert(path, tmp_path / "ghn.safetensors")
    assert not (tmp_path / "ran").exists()


def test_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    torch.save(original("GHN-2"), path)
    packed = tmp_path / "packed"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    with pytest.raises(ConversionError, match="compressed or overlapping"):
        convert(packed, tmp_path / "ghn.safetensors")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ConversionError, match=r"torch\.save did not write"):
        convert(packed, tmp_path / "ghn.safetensors")


def test_archive_with_a_storage_of_another_size_is_refused(tmp_path: Path) -> None:
    path, changed = tmp_path / "checkpoint", tmp_path / "changed"
    torch.save({"embed.weight": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            archive.writestr(entry.filename, content[:8] if "/data/" in entry.filename else content)
    with pytest.raises(ConversionError, match="another size than its entry"):
        convert(changed, tmp_path / "ghn.safetensors")


def test_old_torch_file_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    legacy_dump(original("GHN-2"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConversionError, match="within a storage|larger than the file"):
        convert(path, tmp_path / "ghn.safetensors")


def test_many_views_of_one_storage_are_no_way_to_fill_memory(tmp_path: Path) -> None:
    data = legacy_storage(1000, bytes(4000))
    shared = Storage(data)
    views = {}
    for index in range(1000):
        views[str(index)] = Described(b"", (1000,), (1,))
        views[str(index)].arguments = (shared, *views[str(index)].arguments[1:])
    path = tmp_path / "checkpoint"
    path.write_bytes(pickle.dumps(views))
    with pytest.raises(ConversionError, match="more values than the file has bytes"):
        convert(path, tmp_path / "ghn.safetensors")


def test_endless_pickle_is_cut_off() -> None:
    stream = io.BytesIO(b"\x80\x04" + b"N" * (MAX_OPERATIONS + 10) + b".")
    with pytest.raises(RefusedPickle, match="operations"):
        parse(stream)


@pytest.mark.parametrize("cut", range(0, 400, 13))
def test_truncated_and_damaged_files_are_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for dump in (joblib_dump, legacy_dump, torch.save):
        dump(original("GHN-2"), path)
        content = bytearray(path.read_bytes())
        path.write_bytes(content[: cut or 1])
        with pytest.raises(ConversionError):
            convert(path, tmp_path / "ghn.safetensors")


def test_no_verb_imports_the_converter() -> None:
    code = (
        "import sys, torch_geninit, torch_geninit.hub, torch_geninit.generators.published;"
        "import torch_geninit.graph.autograd;"
        "bad = [m for m in sys.modules if m in ('torch_geninit.convert', 'torch_geninit.restricted_pickle')];"
        "assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
