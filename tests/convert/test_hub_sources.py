"""Sources of the converter on the Hub, against a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from tests.support.ghn_checkpoints import original, same
from tests.support.hub_server import FakeHub, serve
from torch_geninit.convert import __main__ as conversion
from torch_geninit.convert.__main__ import HubError, convert

COMMIT = "0123456789" * 4


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    checkpoint = tmp_path / "in.pt"
    torch.save(original("GHN-2"), checkpoint)
    with serve() as fake:
        huggingface_hub.close_session()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(checkpoint.parent / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for revision in (COMMIT, "main"):
            fake.files["someone/ghn3", revision, "ghn.pt"] = checkpoint.read_bytes()
        fake.answer = {"X-Repo-Commit": COMMIT}
        yield fake
        huggingface_hub.close_session()


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_source_on_the_hub_is_pinned_to_its_commit(revision: str, server: FakeHub, tmp_path: Path) -> None:
    generator = convert(f"someone/ghn3:ghn.pt@{revision}", tmp_path / "ghn.safetensors")
    assert same(generator, original("GHN-2"))
    assert generator.config["trained"]["source"] == f"someone/ghn3:ghn.pt@{COMMIT}"
    (downloaded,) = (path for method, path in server.requests if method == "GET" and "/resolve/" in path)
    assert f"/resolve/{COMMIT}/" in downloaded


def test_branch_that_is_cached_needs_no_hub(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.hf_hub_download("someone/ghn3", "ghn.pt", revision="main", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    generator = convert("someone/ghn3:ghn.pt@main", tmp_path / "ghn.safetensors")
    assert generator.config["trained"]["source"] == f"someone/ghn3:ghn.pt@{COMMIT}"


@pytest.mark.parametrize("source", ["other/repo:ghn.pt@main", f"someone/ghn3:other.pt@{COMMIT}"])
def test_source_that_the_hub_has_not(
    source: str, server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HubError, match=r"looked in:"):
        convert(source, tmp_path / "ghn.safetensors")
    assert conversion.main([source, str(tmp_path / "ghn.safetensors")]) == 1
    assert "What helps:" in capsys.readouterr().err
    assert not (tmp_path / "ghn.safetensors").exists()
