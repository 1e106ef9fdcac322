"""Downloads of several processes at once, under the environment that users set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import COMMIT, REPOSITORY, FakeHub, tree
from tests.support.toy_generator import record
from torch_geninit.hub import download, manifest

pytestmark = pytest.mark.usefixtures("cache")

PROCESSES = """
import json, os, sys, time
from pathlib import Path
from torch_geninit.hub import manifest
from torch_geninit.hub.download import HubOptions, Source, fetch
import huggingface_hub
count, user, source = json.loads(sys.argv[1])
if user is not None:
    # The child may not be allowed to read what is imported at the first request.
    try:
        fetch(Source(*source[:2], "absent.safetensors"), HubOptions(cache_dir="/dev/null/cache"))
    except OSError:
        huggingface_hub.close_session()
else:
    import huggingface_hub.file_download
start = time.time() + 0.2
pids = []
for index in range(count):
    pid = os.fork()
    if pid:
        pids.append(pid)
        continue
    code = 1
    try:
        if user is not None:
            os.setgid(user)
            os.setuid(user)
        time.sleep(max(0.0, start - time.time()))
        said = str(fetch(Source(*source)))
        code = 0
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".replace("\\n", " ")
    # In one piece, since all write to the same pipe.
    os.write(1, f"{said}\\n".encode())
    os._exit(code)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def run_processes(
    count: int, source: list[Any], environment: dict[str, str], user: int | None = None
) -> tuple[list[str], list[int]]:
    """Call fetch in so many processes at once; what each printed, and their exit codes."""
    # A busy machine may keep eight processes and the server waiting for each other.
    patient = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_ETAG_TIMEOUT": "60"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, json.dumps([count, user, source])],
        env={**os.environ, **patient, **environment},
        cwd=manifest.PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *lines, codes = done.stdout.splitlines()
    return lines, json.loads(codes)


@pytest.mark.system
class TestProcesses:
    """With the environment that users set, which the client reads when it is imported."""

    @staticmethod
    def source(content: bytes) -> list[Any]:
        return [REPOSITORY, COMMIT, "toy.safetensors", record(content)["sha256"], len(content)]

    def test_eight_at_once_are_one_download(self, server: FakeHub, content: bytes, tmp_path: Path) -> None:
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
        lines, codes = run_processes(8, self.source(content), environment)
        assert codes == [0] * 8, lines
        assert len(set(lines)) == 1, set(lines)
        path = lines[0]
        assert Path(path).read_bytes() == content
        assert path.startswith(str(tmp_path / "home"))
        assert server.count("GET") == 1

    @pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
    def test_read_only_cache(self, server: FakeHub, content: bytes, tmp_path: Path) -> None:
        home = tmp_path / "home"
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home)}
        download.fetch(download.Source(*self.source(content)), download.HubOptions(cache_dir=home / "hub"))
        server.requests.clear()
        for path in [home, *home.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        nobody = None
        if os.geteuid() == 0:
            # To root no folder is read-only.
            nobody = 65534
            # pytest's folders are closed to others; with pytest-xdist there is one more of them.
            for path in (tmp_path, *list(tmp_path.parents)[:3]):
                path.chmod(path.stat().st_mode | 0o055)
        before = tree(home)
        lines, codes = run_processes(1, self.source(content), environment, nobody)
        assert codes == [0], lines
        assert tree(home) == before
        assert not any("/toy.safetensors" in path for _, path in server.requests)
        other = [REPOSITORY, COMMIT, "other.safetensors", None, None]
        server.files[REPOSITORY, COMMIT, "other.safetensors"] = content
        lines, codes = run_processes(1, other, environment, nobody)
        assert codes == [1]
        assert "HubError" in lines[0] and "can't be written" in lines[0] and str(home) in lines[0]
        for path in [home, *home.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)

    def test_offline_by_environment(self, server: FakeHub, content: bytes, tmp_path: Path) -> None:
        environment = {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
        }
        lines, codes = run_processes(1, self.source(content), environment)
        assert codes == [1]
        assert "HubError" in lines[0] and "offline mode is on" in lines[0]
        assert not server.requests
