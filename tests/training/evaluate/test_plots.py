"""Pictures: what they show of the numbers, and that everybody can tell their lines apart."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")

from matplotlib import colors, figure

from torch_geninit.hub import manifest
from torch_geninit.training.evaluate import plots
from torch_geninit.training.evaluate.paired_stats import Pair
from torch_geninit.training.networks.families import FAMILIES
from torch_geninit.training.networks.search_space import DRAWN, sample

# Colours as seen without one kind of cones, on linear light, at full severity: G. Machado et al., A
# physiologically-based model for simulation of color vision deficiency (2009). Rows of three matrices.
WITHOUT_CONES = {
    "protanopia": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that were written, in order."""
    found: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: found.append(self))
    return found


def lightness_and_colour(colour: str, vision: str) -> Tensor:
    """Return CIE L*a*b* (D65) of an sRGB colour as ``vision`` sees it."""
    rgb = torch.tensor(colors.to_rgb(colour), dtype=torch.float64)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    if vision in WITHOUT_CONES:
        matrix = torch.tensor([float(part) for part in WITHOUT_CONES[vision].split()], dtype=torch.float64)
        linear = (matrix.view(3, 3) @ linear).clamp(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    white = torch.tensor([0.9505, 1.0, 1.089], dtype=torch.float64)
    t = torch.tensor(to_xyz, dtype=torch.float64) @ linear / white
    x, y, z = torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", ["trichromacy", *WITHOUT_CONES])
def test_any_kind_of_vision_tells_the_colours_apart(vision: str) -> None:
    seen = [lightness_and_colour(colour, vision) for colour in plots.PALETTE]
    nearest = min(float((one - other).norm()) for one, other in combinations(seen, 2))
    assert nearest > 10, "2.3 is just noticeable"
    white = lightness_and_colour("white", vision)
    assert all(white[0] - colour[0] > 25 for colour in seen)


def test_every_initialisation_and_family_has_a_look_of_its_own() -> None:
    for table in (plots.INITIALISATIONS, plots.FAMILY_STYLES):
        assert len({style[:2] for style in table.values()}) == len(table)
        assert len({style.label for style in table.values()}) == len(table)
    assert {"he", "xavier"} | {record.name for record in manifest.read()} <= plots.INITIALISATIONS.keys()
    drawn = {sample(random.Random(seed), {name: 1}).family for name in DRAWN for seed in range(20)}
    assert drawn | set(FAMILIES) == plots.FAMILY_STYLES.keys()


def test_the_order_given_changes_no_look() -> None:
    names = ["runs/new.safetensors", "ghn-cifar10", "he"]
    one, other = plots.styles(names), plots.styles(list(reversed(names)))
    assert one == other and list(one) == list(other) == ["he", "ghn-cifar10", "runs/new.safetensors"]
    assert one["runs/new.safetensors"].label == "new"
    assert len({style.colour for style in one.values()}) == 3


def test_strangers_look_like_nothing_else() -> None:
    found = plots.styles([*plots.INITIALISATIONS, *(f"mine-{number}" for number in range(20))])
    assert len({style[:2] for style in found.values()}) == len(found)


def test_letters_are_large_at_half_the_size(saved: list[Any], tmp_path: Path) -> None:
    plots.initialisations({"he": CURVE}, tmp_path / "curves.png")
    (axes,) = saved[0].axes
    width = 6.0  # inches of a page's text
    scale = width / 2 / saved[0].get_size_inches()[0]
    assert scale * axes.xaxis.label.get_size() > 6, "points"


CURVE = {"lr": 0.1, "seeds": [0, 1], "validation": [(0.1, 0.0), (0.5, 0.02), (0.7, 0.01)]}


def test_a_curve_for_each_initialisation(saved: list[Any], tmp_path: Path) -> None:
    other = {**CURVE, "validation": [(0.8, 0.0), (0.7, 0.02), (0.9, 0.01)]}
    plots.initialisations({"ghn-cifar10": other, "he": CURVE}, tmp_path / "curves.png")
    (axes,) = saved[0].axes
    he, generated = axes.lines
    assert he.get_ydata() == pytest.approx([10, 50, 70]) and generated.get_ydata() == pytest.approx(
        [80, 70, 90]
    )
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "He, lr 0.1, 2 seeds",
        "GHN, lr 0.1, 2 seeds",
    ]
    low, high = (pick(axes.collections[0].get_paths()[0].vertices[:, 1].tolist()) for pick in (min, max))
    assert (low, high) == pytest.approx((10, 71)), "one standard deviation"


def test_a_line_for_each_set_of_networks_in_each_panel(saved: list[Any], tmp_path: Path) -> None:
    def row(shift: float) -> dict[str, tuple[float, float | None]]:
        return {"accuracy": (0.9 - shift, 0.01), "nll": (0.3 + shift, None), "ece": (0.02 + shift, 0.001)}

    together = {"clean": row(0.0), "by severity": {severity: row(severity / 10) for severity in (1, 2)}}
    found = [{"zoo": zoo, "networks": 3, "together": together} for zoo in ("a", "he")]
    plots.ensembles(found, tmp_path / "found.png")
    accuracy, nll, ece = saved[0].axes
    for axes, expected in ((accuracy, [90, 80, 70]), (nll, [0.3, 0.4, 0.5]), (ece, [2, 12, 22])):
        assert [line[0].get_ydata() for line in axes.containers] == [pytest.approx(expected)] * 2
    assert [text.get_text() for text in accuracy.get_legend().texts] == ["He, 3 networks", "a, 3 networks"]


def test_a_line_for_each_generator(saved: list[Any], tmp_path: Path) -> None:
    def point(name: str, apart: float, accuracy: float) -> dict[str, object]:
        return {"generator": name, "disagreement": apart, "accuracy": accuracy, "member": accuracy - 0.02}

    records = [point("a", 0.1, 0.78), point("a", 0.05, 0.8), point("b", 0.05, 0.7), point("b", 0.2, 0.75)]
    plots.diversity_tradeoff(records, tmp_path / "tradeoff.png")
    lines = saved[0].axes[0].lines
    assert [line.get_xdata() for line in lines] == [pytest.approx([5, 10])] * 2 + [pytest.approx([5, 20])] * 2
    assert lines[0].get_ydata() == pytest.approx([80, 78]) and lines[1].get_ydata() == pytest.approx([78, 76])
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()


def test_each_generated_network_is_at_its_two_accuracies(saved: list[Any], tmp_path: Path) -> None:
    def pair(family: str, he: list[float], generated: list[float] | None) -> Pair:
        found = {"family": family}
        return Pair(
            {**found, "accuracy": he}, found if generated is None else {**found, "accuracy": generated}
        )

    pairs = [
        pair("plain", [0.3, 0.4, 0.5], [0.5, 0.6, 0.7]),
        pair("dense", [0.4, 0.4, 0.4], [0.30, 0.31, 0.29]),
        pair("dense", [0.4, 0.4, 0.4], [0.1, 0.45, 0.5]),
        pair("mixer", [0.4, 0.4, 0.4], None),
    ]
    plots.first_epoch(pairs, tmp_path / "picture.png")
    points = {container.get_label(): container for container in saved[0].axes[0].containers}
    assert points.keys() == {"plain", "dense"}
    assert points["dense"].lines[0].get_xydata().tolist() == [
        pytest.approx([40, 30]),
        pytest.approx([40, 35]),
    ]
    assert points["plain"].lines[0].get_xydata().tolist() == [pytest.approx([40, 60])]
    deviations = [bars.get_segments()[0] for bars in points["plain"].lines[2]]
    assert deviations[0].tolist() == [pytest.approx([30, 60]), pytest.approx([50, 60])]


def test_each_expected_network_is_a_point_hollow_if_not_trusted(saved: list[Any], tmp_path: Path) -> None:
    def record(accuracy: float, trusted: bool, expected: float | None) -> dict[str, object]:
        told = {"accuracy": expected, "low": expected - 0.1, "high": expected + 0.1} if expected else None
        return {"family": "plain", "accuracy": accuracy, "trusted": trusted, "expected": told}

    records = [record(0.5, True, 0.55), record(0.1, False, 0.3), record(0.2, False, None)]
    plots.expected_and_measured(records, tmp_path / "picture.png")
    filled, hollow = (container.lines[0] for container in saved[0].axes[0].containers)
    assert filled.get_xydata().tolist() == [pytest.approx([55, 50])]
    assert hollow.get_xydata().tolist() == [pytest.approx([30, 10])]
    assert filled.get_markerfacecolor() != "none" and hollow.get_markerfacecolor() == "none"


def test_a_picture_is_written(tmp_path: Path) -> None:
    plots.initialisations({"he": CURVE}, tmp_path / "curves.svg")
    assert "<!-- He, lr 0.1, 2 seeds -->" in (tmp_path / "curves.svg").read_text()
