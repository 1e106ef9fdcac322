"""What tests of releases share: a manifest of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy_generator import KIND
from torch_geninit.hub import manifest
from torch_geninit.hub.config import KINDS
from torch_geninit.training.release import export as exporting


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty manifest and an empty folder of shipped generators."""
    monkeypatch.setitem(KINDS, "ghn", KIND["ghn"])
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "manifest.json").write_text('{"schema": 1, "generators": []}')
    monkeypatch.setattr(manifest, "SHIPPED", tmp_path / "pretrained")
    monkeypatch.setattr(exporting, "CARDS", tmp_path / "cards")
    monkeypatch.setattr(manifest, "locate", lambda: tmp_path / "manifest.json")
    return tmp_path
