"""The compiled kernels are built once, and done without where they can't be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from torch_geninit.training.operators import native


@pytest.fixture()
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the user's, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "kernels", native.kernels.__wrapped__)
    return tmp_path


def test_they_are_built_once(fresh: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    built = native.build(compiler)
    assert list(fresh.rglob("*.so")) == [built]
    before = built.stat().st_mtime_ns
    assert native.build(compiler) == built and built.stat().st_mtime_ns == before


def test_a_compiler_that_fails_is_told_of_and_done_without(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fresh / "c++"
    compiler.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    with pytest.warns(UserWarning, match="without compiled kernels, slower: no such flag"):
        assert native.kernels() is None


def test_without_a_compiler_nothing_is_built(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.kernels() is None and not list(fresh.iterdir())
