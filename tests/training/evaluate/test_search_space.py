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
from torch_geninit.training.runs.task_queue import TaskQueue

SPECS = [Spec("plain", (1, 1), (8, 16)), Spec("plain", (1, 2), (8, 16))]


def record(
    accuracy: float, trusted: bool, expected: float | None = None, half: float = 0.1
) -> dict[str, object]:
    told = {"accuracy": expected, "low": expected - half, "high": expected + half} if expected else None
    return {"family": "plain", "accuracy": accuracy, "trusted": trusted, "expected": told}


def test_each_network_is_measured_once(
    tiny: Callable[[str], WeightGenerator], images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search_space.measure_space(tiny("ghn"), images, images, SPECS[:1], TaskQueue(tmp_path, {}))
    both = search_space.measure_space(tiny("ghn"), images, images, SPECS, TaskQueue(tmp_path, {}))
    assert both[:1] == first and len(both) == 2
    monkeypatch.setattr(heldout, "survey_space", None)
    assert search_space.measure_space(tiny("ghn"), images, images, SPECS, TaskQueue(tmp_path, {})) == both


def test_trust_is_right_where_it_tells_useful_from_useless() -> None:
    found = search_space.reliability(
        [
            record(0.5, True, 0.55),  # right, inside
            record(0.1, True, 0.3),  # wrong, outside
            record(0.1, False),  # right
            record(0.4, False, 0.1),  # wrong: not trusted, though useful
        ]
    )
    assert found["right"] == 0.5
    assert (found["trusted"], found["trusted and useful"], found["not trusted but useful"]) == (2, 1, 1)
    assert found["inside the interval"] == 0.5
    assert found["mean absolute error"] == pytest.approx(0.125)
