"""Figures told twice: those of the manifest and of README's tables stand in docs/generators.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torch_geninit.hub import manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/generators.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FIGURE = r"(?<![\d.])\d+(?:\.\d+)?(?![\d.]*\d)"


def told(value: float) -> set[str]:
    """The ways to tell a measured value: per cent with one digit, or as it is with three."""
    return {f"{100 * value:.1f}", f"{value:.3f}"}


@pytest.mark.parametrize("record", manifest.read(), ids=lambda record: record.name)
def test_figures_of_the_manifest_stand_in_the_docs(record: manifest.Record) -> None:
    section = SECTIONS[record.name if record.name in SECTIONS else "The generators behind `auto`"]
    figures = set(re.findall(FIGURE, section))
    measured = {name: value for name, value in record.numbers.items() if isinstance(value, float)}
    assert measured
    assert [name for name, value in measured.items() if not figures & told(value)] == []


def test_figures_of_the_readme_stand_in_the_docs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("|") and "%" in line]
    figures = set(re.findall(FIGURE, " ".join(rows)))
    assert len(figures) > 20
    assert figures - set(re.findall(FIGURE, PAGE)) == set()
