"""As much of the Hub's protocol as a download needs, on loopback, with faults to order."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

COMMIT = "0123456789" * 4
REPOSITORY = "someone/toy"


@dataclass
class FakeHub:
    """State of the server, shared with the test.

    Attributes:
        files: (repository, revision, filename) -> content.
        requests: all that came in: method and path.
        headers: those of the last request.
        status: answer everything with this status.
        error_code: and with this X-Error-Code.
        silent: methods that get no answer until the test is over.
        cut: send this many bytes of a file's content and close the connection.
        answer: headers to answer with instead of the right ones.
        substitute: content to send instead of the right one.
    """

    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    silent: tuple[str, ...] = ()
    cut: int | None = None
    answer: dict[str, str] = field(default_factory=dict)
    substitute: bytes | None = None
    over: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def count(self, method: str) -> int:
        """Number of requests for files with this method; the client may have questions of its own besides."""
        return sum(seen == method and "/resolve/" in path for seen, path in self.requests)


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a server for the body of the ``with`` statement."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        self._resolve()

    def _resolve(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        if "/resolve/" not in self.path:
            return self._refuse(404, "")
        hub.headers = {key.lower(): value for key, value in self.headers.items()}
        if self.command in hub.silent:
            hub.over.wait(30)
            self.close_connection = True
            return
        if hub.status != 200:
            return self._refuse(hub.status, hub.error_code)
        owner, name, _, revision, filename = self.path.strip("/").split("/")
        if not any(key[0] == f"{owner}/{name}" for key in hub.files):
            return self._refuse(404, "RepoNotFound")
        if not any(key[:2] == (f"{owner}/{name}", revision) for key in hub.files):
            return self._refuse(404, "RevisionNotFound")
        content = hub.files.get((f"{owner}/{name}", revision, filename))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        if self.command == "GET" and hub.substitute is not None:
            content = hub.substitute
        headers = {
            "X-Repo-Commit": revision,
            "ETag": f'"{digest}"',
            "Content-Length": str(len(content)),
            **hub.answer,
        }
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if hub.cut is None else content[: hub.cut])
            self.close_connection = hub.cut is not None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the test reads ``requests``."""


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


def write_manifest(folder: Path, *records: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "generators": list(records)}))


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder below, with the times at which it or what is in it changed."""
    return {
        str(path): (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        for path in sorted(folder.rglob("*"))
        for status in [path.lstat()]
    }
