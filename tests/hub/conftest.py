"""A Hub on loopback that has one small generator, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.support.hub_server import COMMIT, REPOSITORY, FakeHub, serve, use_endpoint, write_manifest
from tests.support.toy_generator import KIND, record, toy
from torch_geninit.hub import file, manifest
from torch_geninit.hub.config import KINDS


@pytest.fixture
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of kind "ghn" hold a toy."""
    monkeypatch.setitem(KINDS, "ghn", KIND["ghn"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.safetensors"


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    file.write(toy(), path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, an empty folder of shipped files, the toy generator, and no token."""
    monkeypatch.setitem(KINDS, "ghn", KIND["ghn"])
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(manifest, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(manifest, "locate", lambda: tmp_path / "manifest.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that has the toy, and a client that is online and knows no other."""
    with serve() as fake:
        fake.files[REPOSITORY, COMMIT, "toy.safetensors"] = content
        use_endpoint(fake.endpoint, monkeypatch)
        yield fake
        huggingface_hub.close_session()


@pytest.fixture
def published(tmp_path: Path, content: bytes) -> None:
    write_manifest(tmp_path, record(content, repo_id=REPOSITORY, revision=COMMIT))
