"""Accuracy against differences: what is measured of members, and what the picture shows."""

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
    still, noisy = diversity_tradeoff.frontier([str(tiny_file("noise-ghn"))], scales, 3, images, images)
    assert (still["noise_scale"], noisy["noise_scale"]) == (0.0, 1.0)
    assert still["disagreement"] == 0 and still["cosine"] == pytest.approx(1, abs=1e-5)
    assert still["member"] == pytest.approx(still["accuracy"])
    assert noisy["cosine"] < 0.9999
    assert still["generator"] == str(tiny_file("noise-ghn"))


def test_the_picture_has_a_line_for_each_generator(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")

    def point(name: str, apart: float, accuracy: float) -> dict[str, object]:
        return {"generator": name, "disagreement": apart, "accuracy": accuracy, "member": accuracy - 0.02}

    def hues(records: list[dict[str, object]]) -> int:
        diversity_tradeoff.draw(records, tmp_path / "frontier.png")
        pixels = image.open(tmp_path / "frontier.png").convert("HSV").tobytes()
        strong = (h for h, s in zip(pixels[::3], pixels[1::3], strict=True) if s > 150)
        return len({hue // 16 for hue in strong})

    one = [point("a", 0.05, 0.8), point("a", 0.1, 0.78)]
    assert hues(one) < hues([*one, point("b", 0.05, 0.7), point("b", 0.2, 0.75)])
