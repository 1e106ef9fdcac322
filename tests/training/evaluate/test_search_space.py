"""Measuring over unseen networks: a record each, once; trust and expectation counted right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tqdm")

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import heldout, search_space
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.runs.task_queue import Records

SPECS = [Spec("plain", (1, 1), (8, 16)), Spec("plain", (1, 2), (8, 16))]


def record(
    accuracy: float, trusted: bool, expected: float | None = None, half: float = 0.1
) -> dict[str, object]:
    told = {"accuracy": expected, "low": expected - half, "high": expected + half} if expected else None
    return {"family": "plain", "accuracy": accuracy, "trusted": trusted, "expected": told}


def test_each_network_is_measured_once(
    tiny: Callable[[str], WeightGenerator], images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search_space.measure_space(tiny("ghn"), images, images, SPECS[:1], Records(tmp_path, {}))
    both = search_space.measure_space(tiny("ghn"), images, images, SPECS, Records(tmp_path, {}))
    assert both[:1] == first and len(both) == 2
    monkeypatch.setattr(heldout, "survey_space", None)
    assert search_space.measure_space(tiny("ghn"), images, images, SPECS, Records(tmp_path, {})) == both


def test_trust_is_right_where_it_tells_useful_from_useless() -> None:
    found = search_space.reliability(
        [
            record(0.5, True, 0.55),  # right, inside
            record(0.1, True, 0.3),  # wrong, outside
            record(0.1, False),  # right
            record(0.4, False, 0.1),  # wrong: kept, though useful
        ]
    )
    assert found["right"] == 0.5
    assert (found["trusted"], found["trusted and useful"], found["kept and useful"]) == (2, 1, 1)
    assert found["inside the interval"] == 0.5
    assert found["mean absolute error"] == pytest.approx(0.125)


def test_the_picture_has_a_point_for_each_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")

    def ink(*records: dict[str, object]) -> int:
        search_space.draw(records, tmp_path / "picture.png")
        pixels = image.open(tmp_path / "picture.png").convert("L").tobytes()
        return sum(value < 250 for value in pixels)

    one = record(0.5, True, 0.55)
    assert ink(record(0.2, False)) < ink(one) < ink(one, record(0.1, False, 0.3))
