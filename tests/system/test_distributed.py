"""Real process groups on the CPU: what ranks get, and that they get it without each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.support import ranks

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

Failures = dict[str, dict[int, str]]


def start(size: int, folder: Path) -> Failures:
    """Run all checks on ``size`` ranks, started once: check -> rank -> what failed."""
    mp.spawn(ranks.run, (size, str(folder)), size)
    found: Failures = {}
    for rank in range(size):
        for name, failure in json.loads((folder / f"{rank}.json").read_text()).items():
            found.setdefault(name, {})[rank] = failure
    return found


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failures]:
    yield start(request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", ranks.CHECKS)
@pytest.mark.parametrize(
    "failures", [2, pytest.param(4, marks=pytest.mark.full)], ids=["2 ranks", "4 ranks"], indirect=True
)
def test_ranks(failures: Failures, check: str) -> None:
    text = "".join(f"\nrank {rank}:\n{failure}" for rank, failure in failures.get(check, {}).items())
    assert not text, text
