"""From a name to a verified file: the real Hub client against a real HTTP server on loopback."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from tests.support.hub_server import COMMIT, REPOSITORY, FakeHub, use_endpoint, write_manifest
from tests.support.toy_generator import Toy, record, toy
from torch_geninit.errors import GeneratorFileError
from torch_geninit.hub import download, registry
from torch_geninit.hub.registry import HubError

pytestmark = pytest.mark.usefixtures("cache")


def failure(name: str = "toy", **options: Any) -> str:
    """Expect a complete error of :func:`hub.load`, and return it."""
    with pytest.raises(HubError) as caught:
        registry.load(name, **options)
    message = str(caught.value)
    for part in (
        "toy.safetensors",
        REPOSITORY,
        COMMIT,
        "looked in:",
        "HF_HUB_OFFLINE",
        "'path/to/",
    ):
        assert part in message
    assert f"hf download {REPOSITORY} toy.safetensors --revision {COMMIT}" in message
    assert caught.value.__cause__ is not None
    return message


@pytest.mark.usefixtures("published")
class TestDownload:
    def test_download_then_no_request_at_all(self, server: FakeHub) -> None:
        generator = registry.load("toy")
        assert isinstance(generator, Toy)
        assert torch.equal(generator.layers[0].weight, toy().layers[0].weight)
        assert server.count("GET") == 1
        assert "torch-geninit/" in server.headers["user-agent"]
        assert "authorization" not in server.headers
        seen = len(server.requests)
        registry.load("toy")
        registry.load("toy", local_files_only=True)
        assert len(server.requests) == seen

    def test_cache_dir_and_token_reach_the_client(self, server: FakeHub, tmp_path: Path, cache: Path) -> None:
        registry.load("toy", cache_dir=tmp_path / "elsewhere", token="hf_secret")
        assert server.headers["authorization"] == "Bearer hf_secret"
        assert (tmp_path / "elsewhere").exists() and not cache.exists()
        assert [entry.where for entry in registry.list_pretrained()] == ["hub"]
        assert [entry.where for entry in registry.list_pretrained(cache_dir=tmp_path / "elsewhere")] == [
            "cached"
        ]

    @pytest.mark.parametrize(
        ("status", "code", "part"),
        [
            (401, "", "HTTP 401: it does not accept the token"),
            (401, "RepoNotFound", "no such repository, or the token does not open it"),
            (403, "GatedRepo", "ask for access"),
            (403, "", "HTTP 403"),
            (404, "RepoNotFound", "no such repository"),
            (404, "RevisionNotFound", "not this revision"),
            (404, "EntryNotFound", "not this file"),
            (500, "", "HTTP 500"),
            (503, "", "HTTP 503"),
        ],
    )
    def test_refusals(self, server: FakeHub, cache: Path, status: int, code: str, part: str) -> None:
        server.status, server.error_code = status, code
        message = failure(token="hf_secret")
        assert part in message and server.endpoint in message
        assert "hf_secret" not in message
        # Asked once, without the client's retries.
        assert (server.count("HEAD"), server.count("GET")) == (1, 0)

    def test_too_many_requests(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        server.status = 429
        assert "HTTP 429: too many requests" in failure()

    def test_silent_server(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        server.silent = ("HEAD",)
        start = time.perf_counter()
        message = failure()
        # The client alone takes 23 seconds; the rest is room for a busy machine.
        assert download.TIMEOUT_SECONDS <= time.perf_counter() - start < 15
        assert "no complete answer" in message and server.endpoint in message
        assert server.count("HEAD") == 1

    @pytest.mark.parametrize(("variable", "expected"), [(10, 5.0), (1, 1), (60, 60)])
    def test_the_clients_own_variable_rules_the_wait(
        self, server: FakeHub, monkeypatch: pytest.MonkeyPatch, variable: int, expected: float
    ) -> None:
        asked: list[float] = []
        original = huggingface_hub.get_hf_file_metadata

        def spy(url: str, **options: Any) -> Any:
            asked.append(options["timeout"])
            return original(url, **options)

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", spy)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", variable)
        registry.load("toy")
        assert asked == [expected]

    @pytest.mark.full
    def test_content_never_comes(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        # The client resumes five times, whatever it is asked; its own variable shortens each wait.
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        server.silent = ("GET",)
        assert "HF_HUB_DOWNLOAD_TIMEOUT" in failure()

    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_endpoint("http://127.0.0.1:9", monkeypatch)
        start = time.perf_counter()
        assert "no complete answer from http://127.0.0.1:9" in failure()
        assert time.perf_counter() - start < 15

    def test_truncated(self, server: FakeHub, cache: Path) -> None:
        server.cut = 100
        message = failure()
        assert "no complete answer" in message or "Consistency check" in message
        assert not list(cache.rglob("*.safetensors"))
        server.cut = None
        assert isinstance(registry.load("toy"), Toy)

    def test_other_content_of_the_same_size(self, server: FakeHub, content: bytes) -> None:
        server.substitute = content[:-1] + b"\x7f"
        message = failure()
        assert "not what the manifest names" in message and "sha256" in message
        # The client now has the wrong file in its cache; it must not be used, and is fetched anew.
        assert "sha256" in failure(local_files_only=True)
        server.substitute = None
        assert isinstance(registry.load("toy"), Toy)

    def test_other_size_is_not_downloaded(self, server: FakeHub, content: bytes) -> None:
        server.files[REPOSITORY, COMMIT, "toy.safetensors"] = content * 2
        assert f"{2 * len(content)} bytes, the manifest says {len(content)}" in failure()
        assert server.count("GET") == 0

    @pytest.mark.parametrize(
        "answer",
        [
            {"ETag": '"../../../outside"'},
            {"ETag": '"/tmp/outside-torch-geninit"'},
            {"X-Repo-Commit": "../../outside"},
            {"X-Repo-Commit": "f" * 40},
        ],
    )
    def test_answers_that_would_leave_the_cache(
        self, server: FakeHub, cache: Path, answer: dict[str, str]
    ) -> None:
        server.answer = answer
        assert "doesn't answer as the Hub does" in failure()
        assert server.count("GET") == 0 and not cache.exists()

    def test_cache_that_cannot_be_made(self, server: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "occupied").touch()
        message = failure(cache_dir=tmp_path / "occupied" / "cache")
        assert "--cache-dir" in message and str(tmp_path / "occupied") in message


@pytest.mark.usefixtures("published")
class TestOffline:
    @pytest.mark.parametrize("way", ["environment", "argument"])
    def test_nothing_cached(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "environment")
        start = time.perf_counter()
        message = failure(local_files_only=way == "argument")
        assert time.perf_counter() - start < 2
        assert "offline mode is on" in message and "(not there)" in message
        assert not server.requests

    def test_cached(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        registry.load("toy")
        server.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert isinstance(registry.load("toy"), Toy)
        assert not server.requests


@pytest.mark.usefixtures("published")
class TestCache:
    def test_corrupted_is_fetched_again_once(self, server: FakeHub, content: bytes) -> None:
        registry.load("toy")
        blob = registry.locate("toy").resolve()
        blob.write_bytes(bytes(len(content)))
        assert [entry.where for entry in registry.list_pretrained()] == ["hub"]
        server.requests.clear()
        assert isinstance(registry.load("toy"), Toy)
        assert server.count("GET") == 1
        assert blob.read_bytes() == content

    def test_truncated_file_without_symbolic_links(self, server: FakeHub, content: bytes) -> None:
        registry.load("toy")
        path = registry.locate("toy")
        path.unlink()
        path.write_bytes(content[:50])
        assert isinstance(registry.load("toy"), Toy)
        assert registry.locate("toy").read_bytes() == content

    def test_corrupted_and_offline(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        registry.load("toy")
        path = registry.locate("toy")
        path.resolve().write_bytes(b"damaged")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = failure()
        assert "there, but" in message and str(path) in message and "7 bytes" in message

    def test_corrupted_and_the_hub_is_gone(self, server: FakeHub, content: bytes) -> None:
        registry.load("toy")
        registry.locate("toy").resolve().write_bytes(bytes(len(content)))
        server.status = 503
        message = failure()
        assert "HTTP 503" in message and "sha256" in message

    def test_hashed_once(self, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        registry.load("toy")
        path = registry.locate("toy")
        monkeypatch.setattr(download.hashlib, "sha256", lambda: pytest.fail("hashed again"))
        registry.load("toy")
        monkeypatch.undo()
        os.utime(path, ns=(1, 1))
        hashed = len(download._digests)
        assert download.sha256(path) == record(path.read_bytes())["sha256"]
        assert len(download._digests) == hashed + 1


class TestResolution:
    def test_shipped_before_cache_and_hub(self, server: FakeHub, tmp_path: Path, content: bytes) -> None:
        write_manifest(tmp_path, record(content, repo_id=REPOSITORY, revision=COMMIT))
        (tmp_path / "shipped" / "toy.safetensors").write_bytes(content)
        assert isinstance(registry.load("toy"), Toy)
        assert registry.locate("toy").parent == tmp_path / "shipped"
        assert not server.requests

    def test_shipped_but_damaged_is_replaced(self, server: FakeHub, tmp_path: Path, content: bytes) -> None:
        write_manifest(tmp_path, record(content, repo_id=REPOSITORY, revision=COMMIT))
        (tmp_path / "shipped" / "toy.safetensors").write_bytes(content[:-1] + b"\x7f")
        assert isinstance(registry.load("toy"), Toy)
        assert server.count("GET") == 1
        server.status = 503
        message = failure(cache_dir=tmp_path / "empty")
        assert "its sha256 is" in message and str(tmp_path / "shipped") in message

    @pytest.mark.parametrize("damaged", [False, True])
    def test_unpublished_is_never_fetched(
        self, server: FakeHub, tmp_path: Path, content: bytes, damaged: bool
    ) -> None:
        write_manifest(tmp_path, record(content))
        if damaged:
            (tmp_path / "shipped" / "toy.safetensors").write_bytes(b"other")
        with pytest.raises(
            HubError, match=r"'toy' ships.*not on the Hub.*toy\.safetensors is (not there|changed)"
        ):
            registry.load("toy")
        assert [entry.where for entry in registry.list_pretrained()] == ["missing"]
        assert not server.requests

    def test_published_checkpoint_is_sent_to_the_converter(self, tmp_path: Path, content: bytes) -> None:
        write_manifest(tmp_path, record(content))
        with pytest.raises(HubError, match=r"python -m torch_geninit\.convert ghn3tm8\.pt TARGET"):
            registry.load("ghn3tm8.pt")

    def test_unknown_name(self, tmp_path: Path, content: bytes) -> None:
        write_manifest(tmp_path, record(content), record(content, name="other"))
        with pytest.raises(HubError, match=r"'tyo'\. Did you mean 'toy'\? The manifest has: toy, other"):
            registry.load("tyo")
        with pytest.raises(HubError, match=r"'TOY_'\. Did you mean 'toy'\?"):
            registry.locate("TOY_")

    def test_path(self, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        # A path needs no manifest.
        path = tmp_path / "mine.safetensors"
        path.write_bytes(content)
        monkeypatch.chdir(tmp_path)
        for spelling in (path, str(path), "mine.safetensors", "./mine.safetensors", Path("mine.safetensors")):
            assert isinstance(registry.load(spelling), Toy)
        with pytest.raises(GeneratorFileError, match=r"gone\.safetensors.*No such file"):
            registry.load("gone.safetensors")

    def test_loaded_generator_passes_through(self) -> None:
        generator = toy()
        assert registry.load(generator) is generator

    def test_repository_at_a_commit(self, server: FakeHub) -> None:
        assert isinstance(registry.load(REPOSITORY, revision=COMMIT), Toy)
        assert server.count("GET") == 1
        with pytest.raises(ValueError, match="40 hex digits"):
            registry.load(REPOSITORY, revision="main")

    @pytest.mark.parametrize("name", ["toy", "toy.safetensors", Path("toy.safetensors"), toy()])
    def test_revision_belongs_to_repositories(self, tmp_path: Path, content: bytes, name: Any) -> None:
        write_manifest(tmp_path, record(content))
        with pytest.raises(ValueError, match="revision="):
            registry.load(name, revision=COMMIT)

    def test_list_is_a_table(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "shipped" / "toy.safetensors").write_bytes(content)
        write_manifest(
            tmp_path, record(content), record(content, name="b", filename="b.safetensors", size=2_000_000)
        )
        entries = registry.list_pretrained()
        assert [(e.name, e.kind, e.where) for e in entries] == [
            ("toy", "ghn", "shipped"),
            ("b", "ghn", "missing"),
        ]
        assert entries[0].numbers["accuracy"] == 0.5
        lines = repr(entries).splitlines()
        assert len(lines) == 4 and "2.0" in lines[3] and "missing" in lines[3]
        assert "<td>missing</td>" in entries._repr_html_()
