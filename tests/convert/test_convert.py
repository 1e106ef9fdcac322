"""Conversion of published checkpoints: formats, families, the command, the target, and what is no GHN."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support import processes
from tests.support.ghn_checkpoints import (
    FAMILIES,
    FORMATS,
    PACKED,
    PICKLES,
    joblib_dump,
    legacy_dump,
    original,
    same,
)
from torch_geninit.convert import __main__ as conversion
from torch_geninit.convert.__main__ import ConversionError, convert
from torch_geninit.generators.published.model import PublishedGHN
from torch_geninit.generators.rng import noise_stream
from torch_geninit.hub.file import read

# --- formats and families -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_every_family_converts(name: str, form: str, tmp_path: Path) -> None:
    state = original(name)
    FORMATS[form](state, tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors", licence="MIT")
    generator = read(tmp_path / "ghn.safetensors")
    assert isinstance(generator, PublishedGHN)
    assert same(generator, state)
    assert generator.config["licence"] == "MIT"
    assert generator.config["sizes"] == FAMILIES[name]


@pytest.mark.parametrize("form", PICKLES | PACKED)
def test_checkpoint_with_config_converts(form: str, tmp_path: Path) -> None:
    state = original("GHN-2")
    config = {
        "hid": 8,
        "max_shape": (16, 16, 11, 11),
        "hypernet": "gatedgnn",
        "weight_norm": False,
        "lr": 1e-3,
    }
    (PICKLES | PACKED)[form](
        {"state_dict": collections.OrderedDict(state), "config": config, "epoch": 300},
        tmp_path / "checkpoint",
    )
    generator = convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors")
    assert same(generator, state)
    assert not generator.config["sizes"]["weight_norm"]


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


@pytest.mark.parametrize("form", PICKLES)
def test_checkpoint_saved_on_another_device_converts(form: str, tmp_path: Path) -> None:
    state = original("GHN-2")
    path = tmp_path / "checkpoint"
    PICKLES[form](state, path)
    here, there = b"X\x03\0\0\0cpu", b"X\x03\0\0\0mps"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content.replace(here, there))
        changed = any(there in content.replace(here, there) for content in entries.values())
    else:
        content = path.read_bytes()
        changed = here in content
        path.write_bytes(content.replace(here, there))
    assert changed
    assert same(convert(path, tmp_path / "ghn.safetensors"), state)


def test_checkpoint_with_its_optimizer_converts(tmp_path: Path) -> None:
    state = original("GHN-3")
    parameters = [nn.Parameter(value) for value in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for dump in (torch.save, joblib_dump):
        dump({"state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
        assert same(convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors"), state)


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


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(original("GHN-2"), tmp_path / "in.pt")
    return tmp_path / "in.pt"


@pytest.mark.system
def test_command_line(checkpoint: Path) -> None:
    folder = checkpoint.parent
    command = [sys.executable, "-m", "torch_geninit.convert", "in.pt", "out.safetensors", "--licence", "MIT"]
    done = subprocess.run(
        command, cwd=folder, env=processes.environment(), capture_output=True, text=True, check=True
    )
    assert re.match(r"wrote out\.safetensors: GHN-2, \d+ values, 10 classes\n", done.stdout)
    assert "ghn_(model, pretrained='out.safetensors')" in done.stdout
    assert read(folder / "out.safetensors").config["licence"] == "MIT"


@pytest.mark.parametrize("name", FAMILIES)
def test_command_names_the_family(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(original(name), tmp_path / "in.pt")
    assert conversion.main([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 0
    assert f": {name.partition(',')[0]}, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.pt", "neither a file nor repo_id:filename@revision"),
        (".", "is a folder"),
        ("some/repo:ghn.pt", "lacks a revision"),
        ("some/repo:../ghn.pt@main", "neither a file nor"),
        ("../repo:ghn.pt@main", "neither a file nor"),
        ("some/..:ghn.pt@main", "neither a file nor"),
        ("some/repo:ghn.pt@../../main", "neither a file nor"),
        ("some/repo:a\\..\\ghn.pt@main", "neither a file nor"),
        ("some/repo:/ghn.pt@main", "neither a file nor"),
        ("in.pt@main", "neither a file nor"),
    ],
)
def test_impossible_source_is_explained(
    source: str,
    said: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert conversion.main([source, "out.safetensors"]) == 1
    assert said in capsys.readouterr().err


# --- the target ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("out.pt", "must end in .safetensors"),
        ("missing/out.safetensors", "there is no folder"),
        ("folder.safetensors", "it is a folder"),
        ("same.safetensors", "it is the source"),
    ],
)
def test_impossible_target_is_refused_before_the_source_is_read(
    target: str, said: str, tmp_path: Path
) -> None:
    source = tmp_path / "same.safetensors"
    source.write_text("no checkpoint")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ConversionError, match=said):
        convert(source, tmp_path / target)
    assert source.read_text() == "no checkpoint"


def test_target_is_replaced_as_a_whole_and_readable_as_other_files_are(checkpoint: Path) -> None:
    target = checkpoint.with_name("out.safetensors")
    target.write_text("an older file")
    reader = open(target)
    convert(checkpoint, target)
    assert reader.read() == "an older file"
    reader.close()
    assert target.stat().st_mode == checkpoint.stat().st_mode
    assert sorted(path.name for path in target.parent.iterdir()) == ["in.pt", "out.safetensors"]


def test_target_that_is_a_link_is_replaced_and_not_followed(checkpoint: Path) -> None:
    target, other = checkpoint.with_name("out.safetensors"), checkpoint.with_name("other")
    other.write_text("another file")
    target.symlink_to(other)
    convert(checkpoint, target)
    assert other.read_text() == "another file"
    assert not target.is_symlink()


def test_target_that_is_a_link_to_the_source_is_refused(checkpoint: Path) -> None:
    target = checkpoint.with_name("out.safetensors")
    target.symlink_to(checkpoint)
    with pytest.raises(ConversionError, match="it is the source"):
        convert(checkpoint, target)


def test_failed_write_leaves_the_old_target_and_nothing_else(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise safetensors.SafetensorError("no space left")

    target = checkpoint.with_name("out.safetensors")
    target.write_text("an older file")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ConversionError, match="could not be written"):
        convert(checkpoint, target)
    assert target.read_text() == "an older file"
    assert sorted(path.name for path in target.parent.iterdir()) == ["in.pt", "out.safetensors"]


# --- what is no GHN -----------------------------------------------------------------------------------------


def refused(content: dict[str, object], tmp_path: Path, said: str) -> None:
    torch.save(content, tmp_path / "checkpoint")
    with pytest.raises(ConversionError, match=said):
        convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors")
    assert not (tmp_path / "ghn.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"more.weight": torch.zeros(2)}, r"'more\.weight': expected no such tensor, got \(2,\)"),
        ({"ln.weight": torch.zeros(9)}, r"'ln\.weight': expected \(8,\), got \(9,\)"),
        ({"ln.weight": torch.full((8,), float("nan"))}, "NaN"),
        ({"ln.weight": torch.zeros(8, dtype=torch.int64)}, r"torch\.int64"),
        ({"ln.weight": torch.eye(8).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"ln.weight": "text"}, r"'ln\.weight', which is no tensor"),
        ({"embed.weight": torch.zeros(8)}, r"matrix 'embed\.weight', got \(8,\)"),
        ({"embed.weight": torch.zeros(15, 0)}, r"matrix 'embed\.weight', got \(15, 0\)"),
        ({"embed.weight": torch.zeros(15, 9)}, "sizes are impossible"),
        ({"ln\x1b[2J": torch.zeros(8)}, r"'ln\\x1b\[2J'"),
    ],
)
def test_other_tensors_are_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    refused({**original("GHN-2"), **changes}, tmp_path, said)


@pytest.mark.parametrize("value", [torch.zeros(3), "yes", None, 1])
@pytest.mark.parametrize("form", PICKLES)
def test_config_that_is_neither_true_nor_false_is_refused(form: str, value: object, tmp_path: Path) -> None:
    PICKLES[form](
        {"state_dict": original("GHN-2"), "config": {"weight_norm": value}}, tmp_path / "checkpoint"
    )
    with pytest.raises(ConversionError, match="neither true nor false of weight_norm"):
        convert(tmp_path / "checkpoint", tmp_path / "ghn.safetensors")


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    refused(nn.Linear(2, 2).state_dict(), tmp_path, r"not of a GHN: expected a matrix 'embed\.weight'")


def test_generator_file_is_not_converted_again(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "ghn.safetensors")
    with pytest.raises(ConversionError, match="a generator file already"):
        convert(tmp_path / "ghn.safetensors", tmp_path / "again.safetensors")


@pytest.mark.system
def test_no_verb_imports_the_converter() -> None:
    code = (
        "import sys, torch_geninit, torch_geninit.hub.registry, torch_geninit.generators.published.model;"
        "import torch_geninit.generators.published.reader.read;"
        "readers = ['convert', 'convert.archives', 'convert.unpickler', 'convert.tensors'];"
        "bad = [name for name in readers if 'torch_geninit.' + name in sys.modules];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], env=processes.environment(), check=True)
