"""The table of transfer by hand: intervals, pairs, who is surely behind, means over networks."""

from __future__ import annotations

from typing import Any

import pytest

from torch_geninit.training.evaluate.transfer_table import markdown, means, rows


def figures(network: str, name: str, tests: list[float], epoch: int = 5) -> list[dict[str, Any]]:
    place = {"data": "flowers", "share": 0.1, "network": network, "initialisation": name, "epoch": epoch}
    return [{**place, "lr": 0.03, "seed": seed, "test": test} for seed, test in enumerate(tests)]


FIGURES = [
    *figures("resnet18", "reference", [0.40, 0.42, 0.44]),
    *figures("resnet18", "ghn", [0.50, 0.54, 0.52]),
    *figures("resnet50", "reference", [0.38, 0.38, 0.38]),
    *figures("resnet50", "ghn", [0.30, 0.31, 0.29]),
    *figures("vit of 12 blocks", "mimetic", [0.5]),
    *figures("vit of 12 blocks", "reference", [0.4]),
]


def test_rows_by_hand() -> None:
    found = {(row["network"], row["initialisation"]): row for row in rows(FIGURES, "reference")}
    mean, half = found["resnet18", "reference"]["test"]
    # Standard deviation 0.02 of three: t(0.975, 2) = 4.303 times 0.02 / sqrt(3).
    assert mean == pytest.approx(0.42) and half == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert found["resnet18", "reference"]["lead"] is None
    lead, half = found["resnet18", "ghn"]["lead"]
    # Leads 0.10, 0.12 and 0.08, paired by seed.
    assert lead == pytest.approx(0.1) and half == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert [row["behind"] for row in found.values()] == [False, False, False, True, False, False]
    assert found["vit of 12 blocks", "mimetic"]["test"] == (0.5, None)


def test_means_over_networks_and_kinds_apart() -> None:
    convolutions, tokens = means(rows(FIGURES, "reference"))
    assert (convolutions["networks"], convolutions["count"]) == ("convolutional", 2)
    assert convolutions["lead"] == pytest.approx((0.1 - 0.08) / 2)
    assert convolutions["behind"] == ["resnet50"] and tokens["behind"] == []
    assert (tokens["networks"], tokens["lead"]) == ("over tokens", pytest.approx(0.1))


def test_markdown_flags_what_is_significantly_behind() -> None:
    lines = markdown(rows(FIGURES, "reference"), "reference").splitlines()
    row = "| flowers | 0.1 | resnet50 | 5 | ghn | 0.03 | 3 | 30.0 ± 2.5 | -8.0 ± 2.5, significantly behind |"
    assert row in lines
    assert "| flowers | 0.1 | 2 convolutional | 5 | ghn | +1.0 | resnet50 |" in lines
    assert "| flowers | 0.1 | vit of 12 blocks | 5 | mimetic | 0.03 | 1 | 50.0 | +10.0 |" in lines
