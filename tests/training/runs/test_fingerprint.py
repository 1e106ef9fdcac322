"""A measurement's settings change with the content of what it measures, not with names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from torch_geninit.hub import manifest
from torch_geninit.training.runs import fingerprint

SHIPPED = manifest.SHIPPED / "ghn-cifar10.safetensors"


def test_a_generator_is_its_file(tmp_path: Path) -> None:
    copy = tmp_path / "mine.safetensors"
    shutil.copy(SHIPPED, copy)
    assert (
        fingerprint.of_generator("ghn-cifar10")
        == fingerprint.of_generator(str(copy))
        == fingerprint.of_file(SHIPPED)
    )
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert fingerprint.of_generator(str(copy)) != fingerprint.of_generator("ghn-cifar10")


def test_auto_is_all_that_it_chooses_from(monkeypatch: pytest.MonkeyPatch) -> None:
    records = manifest.read()
    whole = fingerprint.of_generator("auto")
    assert whole == fingerprint.of_generator("auto")

    def without(kind: str) -> str:
        left = tuple(record for record in records if record.kind != kind)
        monkeypatch.setattr(manifest, "read", lambda: left)
        return fingerprint.of_generator("auto")

    assert without("vae") == whole != without("ghn")


def test_what_is_no_generator_is_named() -> None:
    with pytest.raises(ValueError, match="no generator 'cats'; expected a file or one of .*ghn-cifar10"):
        fingerprint.of_generator("cats")
