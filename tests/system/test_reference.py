"""docs/reference.md names what is public: functions, classes, arguments of the verbs, examples."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import torch_geninit as geninit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
VERBS = PAGE.partition("## Before and after")[0]


@pytest.mark.parametrize("name", [name for name in geninit.__all__ if name != "__version__"])
def test_public_names(name: str) -> None:
    assert re.search(rf"`(geninit\.)?{name}\b", PAGE), "as code, not in passing"


@pytest.mark.parametrize("verb", [geninit.vae_, geninit.ghn_, geninit.noise_ghn_])
def test_arguments_of_the_verbs(verb: object) -> None:
    arguments = {
        name
        for name, parameter in inspect.signature(verb).parameters.items()  # type: ignore[arg-type]
        if name == "seed" or parameter.kind is parameter.KEYWORD_ONLY
    }
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", VERBS, re.MULTILINE)
    told = {
        argument
        for cell, of in rows
        for argument in re.findall(r"`(\w+)`", cell)
        if of == "all" or f"`{verb.__name__}`" in of or (of == "hypernetworks" and verb is not geninit.vae_)  # type: ignore[attr-defined]
    }
    assert arguments == told


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example: Path) -> None:
    program = "__main__" in example.read_text(encoding="utf-8")
    assert (f"examples/{example.name}" in PAGE) is program
