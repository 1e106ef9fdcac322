"""Parsers of what others write, under input that mutation made: kept cases, and a loop for a fixed time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fuzz, mutations

pytestmark = pytest.mark.filterwarnings("ignore")

KEPT = sorted(path for path in fuzz.CASES.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    with fuzz.toys():
        yield


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_sound_input_is_accepted(name: str, tmp_path: Path) -> None:
    for make in fuzz.PARSERS[name].sound:
        assert fuzz.answer(fuzz.PARSERS[name], make(), tmp_path) == ("accepted",)


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_kept_cases(name: str, tmp_path: Path) -> None:
    """Each was once the first to be answered from some place, or not as it should."""
    cases = [path for path in KEPT if path.parent.name == name]
    for path in cases:
        fuzz.answer(fuzz.PARSERS[name], path.read_bytes(), tmp_path)
    assert len(cases) > 2


@pytest.mark.parametrize("seconds", [0.5, pytest.param(60, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_for_a_fixed_time(name: str, seconds: float) -> None:
    report = fuzz.fuzz(name, seconds, seed=1)
    assert not report.failures, "\n".join(f"{content!r}\n{text}" for content, text in report.failures)
    assert report.tried > 10 * seconds and len(report.answers) > 1


def test_the_loop_finds_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser with a hole, a slow one and a greedy one are caught; otherwise the loop proves nothing."""

    def hole(content: bytes, path: Path) -> None:
        if b"2" not in content:
            raise KeyError("hole")

    def greedy(content: bytes, path: Path) -> None:
        # Not from the heap, where memory that earlier tests freed may lie ready.
        with mmap.mmap(-1, 64 << 20) as fresh:
            for _ in range(64):
                fresh.write(bytes(1 << 20))

    def slow(content: bytes, path: Path) -> None:
        while True:
            pass

    def littering(content: bytes, path: Path) -> None:
        path.with_name("other").write_bytes(b"")

    monkeypatch.setattr(fuzz, "SECONDS_A_CASE", 0.5)
    monkeypatch.setattr(fuzz, "MEMORY_A_CASE", 32 << 20)
    for read, said in ((hole, "hole"), (greedy, "MiB"), (slow, "processor time"), (littering, "left")):
        if read is greedy and not fuzz.resident("VmRSS"):
            continue
        parser = fuzz.Parser(read, ValueError, mutations.mutate_bytes, [lambda: b"12"])
        monkeypatch.setitem(fuzz.PARSERS, "faulty", parser)
        report = fuzz.fuzz("faulty", 1, seed=0)
        assert report.failures and said in report.failures[0][1], said
