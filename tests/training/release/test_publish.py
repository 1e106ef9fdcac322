"""Publish: the real HfApi against as much of the Hub's upload protocol as it asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.support.exported import exported
from torch_geninit.hub import manifest
from torch_geninit.training.release import publish as publishing

COMMIT = "fedcba9876543210" * 2 + "fedcba98"


@dataclass
class Uploads:
    """What the server received: repositories made, commits, contents; and how it answers."""

    repositories: list[dict[str, Any]] = field(default_factory=list)
    committed: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: int = 0
    damage: bool = False
    unknown: list[str] = field(default_factory=list)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    uploads: Uploads
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        uploads, path = self.uploads, self.path.partition("?")[0]
        uploads.tokens.add(self.headers.get("Authorization", ""))
        if uploads.refuse:
            return self.answer({"error": "no"}, uploads.refuse)
        if path == "/api/repos/create":
            uploads.repositories.append(json.loads(body))
            return self.answer({"url": f"{uploads.endpoint}/someone/toy"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/models/someone/toy/preupload/main":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path == "/someone/toy.git/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{uploads.endpoint}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path == "/api/models/someone/toy/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    uploads.committed[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    uploads.committed[value["path"]] = uploads.stored[value["oid"]]
            return self.answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{uploads.endpoint}/someone/toy/commit/{COMMIT}",
                    "hookOutput": "",
                }
            )
        if path == f"/api/models/someone/toy/paths-info/{COMMIT}":
            return self.answer([self.info(name, content) for name, content in uploads.committed.items()])
        uploads.unknown.append(path)
        return self.answer({"error": path}, 404)

    def info(self, name: str, content: bytes) -> dict[str, Any]:
        if self.uploads.damage:
            content = content + b"!"
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry |= {"oid": "1" * 40, "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
        return entry

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.uploads.stored[self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_GET(self) -> None:
        """Answer questions that the client asks for purposes of its own."""
        self.answer({}, 404)

    def answer(self, data: Any, status: int = 200) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    received = Uploads()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"uploads": received}))
    server.daemon_threads = True
    received.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", received.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # The protocol of git-lfs; the client's other one is a storage service of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield received
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


class TestPublish:
    def test_file_and_card_arrive_and_the_commit_is_pinned(self, house: Path, uploads: Uploads) -> None:
        exported()
        content = (house / "pretrained" / "toy.safetensors").read_bytes()
        published = publishing.publish(publishing.prepare("toy", "someone"), token="hf_secret")
        assert uploads.committed == {
            "toy.safetensors": content,
            "README.md": (house / "cards" / "toy.md").read_bytes(),
        }
        assert uploads.repositories[0]["name"] == "toy"
        assert "Bearer hf_secret" in uploads.tokens
        assert (published.repo_id, published.revision) == ("someone/toy", COMMIT)
        assert manifest.read() == (published,)
        assert not uploads.unknown

    @pytest.mark.parametrize("fault", ["refuse", "damage"])
    def test_a_failure_leaves_the_manifest(self, house: Path, uploads: Uploads, fault: str) -> None:
        exported()
        before = (house / "manifest.json").read_bytes()
        setattr(uploads, fault, 403 if fault == "refuse" else True)
        with pytest.raises(OSError, match="403|does not hold toy.safetensors"):
            publishing.publish(publishing.prepare("toy", "someone"), token="hf_secret")
        assert (house / "manifest.json").read_bytes() == before

    def test_dry_run_sends_nothing(
        self, house: Path, uploads: Uploads, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = exported()
        parser = ArgumentParser()
        publishing.add_arguments(parser)
        publishing.main(parser.parse_args(["toy", "--owner", "someone", "--dry-run"]))
        shown = capsys.readouterr().out
        assert "someone/toy" in shown and made.sha256 in shown and "Nothing was sent" in shown
        assert not uploads.tokens and not uploads.repositories

    def test_what_cannot_be_published(self, house: Path) -> None:
        exported()
        with pytest.raises(ValueError, match="no generator 'other', only toy"):
            publishing.prepare("other", "someone")
        with pytest.raises(ValueError, match="owner"):
            publishing.prepare("toy", "http://someone")
        (house / "pretrained" / "toy.safetensors").write_bytes(b"changed")
        with pytest.raises(ValueError, match="export it again"):
            publishing.prepare("toy", "someone")
