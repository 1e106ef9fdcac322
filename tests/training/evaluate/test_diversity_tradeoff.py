"""Accuracy against differences: what is measured of members."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("torchmetrics")

from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import diversity_tradeoff


def test_members_differ_by_their_noise(tiny_file: Callable[[str], Path], images: Split) -> None:
    scales = [0.0, 1.0]
    still, noisy = diversity_tradeoff.tradeoff([str(tiny_file("noise-ghn"))], scales, 3, images, images)
    assert (still["noise_scale"], noisy["noise_scale"]) == (0.0, 1.0)
    assert still["disagreement"] == 0 and still["cosine"] == pytest.approx(1, abs=1e-5)
    assert still["member"] == pytest.approx(still["accuracy"])
    assert noisy["cosine"] < 0.9999
    assert still["generator"] == str(tiny_file("noise-ghn"))
