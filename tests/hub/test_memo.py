"""Files are read once, and again when they or what was read from them have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.conftest import tiny_generator
from torch_geninit.hub import file, manifest
from torch_geninit.hub.memo import Memo


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose tensors were read."""
    found: list[Path] = []
    plain: Callable[[Path], object] = file.read

    def read(path: Path) -> object:
        found.append(path)
        return plain(path)

    monkeypatch.setattr(file, "read", read)
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def drawn(path: Path) -> torch.Tensor:
    model = geninit.vae_(network(), pretrained=path, seed=1)
    return next(model.parameters()).detach().clone()


def test_initialisers_read_a_file_once_and_again_when_it_changed(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "vae.safetensors"
    generator = tiny_generator("vae")
    file.write(generator, path)
    first = drawn(path)
    assert torch.equal(drawn(path), first)
    assert len(reads) == 1
    before = path.stat()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(0.5)
    file.write(generator, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert not torch.equal(drawn(path), first)
    assert len(reads) == 2


def test_a_generator_that_somebody_changed_is_read_anew(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "vae.safetensors"
    file.write(tiny_generator("vae"), path)
    first = drawn(path)
    with torch.no_grad():
        for parameter in geninit.plan(network(), "vae", pretrained=path).pretrained.parameters():
            parameter.zero_()
    assert torch.equal(drawn(path), first)
    assert len(reads) == 2


def test_load_gives_everyone_a_generator_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    file.write(tiny_generator("vae"), path)
    drawn(path)
    assert geninit.load(path) is not geninit.load(path)


def test_the_manifest_is_parsed_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest.locate().read_bytes())
    records = manifest.read(path)
    assert manifest.read(path) is records
    path.write_text('{"schema": 1, "generators": []}')
    assert records and manifest.read(path) == ()


def test_a_memo_keeps_no_more_than_it_may(tmp_path: Path) -> None:
    memo: Memo[str] = Memo(most=2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    seen: list[Path] = []

    def read(path: Path) -> str:
        seen.append(path)
        return path.read_text()

    assert [memo.get(path, read) for path in (*paths, *paths[1:])] == ["a", "b", "c", "b", "c"]
    assert len(seen) == 3
    memo.get(paths[0], read)
    assert len(seen) == 4
