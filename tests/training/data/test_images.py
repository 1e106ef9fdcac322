"""Prepared image files: what is read of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torch_geninit.training.data import images

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    images.prepare("digits", target, size=8)
    return target


@pytest.mark.parametrize("limit", [1, 7, 128])
def test_a_limit_reads_evenly_spaced_images(digits: Path, limit: int) -> None:
    whole, some = images.load(digits, "train"), images.load(digits, "train", limit)
    spread = whole.spread(limit)
    assert torch.equal(some.images, spread.images) and torch.equal(some.labels, spread.labels)


def test_a_limit_beyond_the_split_reads_it_all(digits: Path) -> None:
    whole, some = images.load(digits, "test"), images.load(digits, "test", 10_000)
    assert torch.equal(some.images, whole.images) and torch.equal(some.labels, whole.labels)
