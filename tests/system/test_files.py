"""Files hold one idea; a longer one says in its first line why it is not two."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 350
FOLDERS = ("torch_geninit", "tests", "examples")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_long_file_says_why_in_its_first_line(folder: str) -> None:
    long = [path for path in FILES if path.is_relative_to(ROOT / folder) and lines(path) > MOST_LINES]
    silent = [str(path.relative_to(ROOT)) for path in long if "because" not in first_line(path)]
    assert not silent, f"more than {MOST_LINES} lines: split by ideas, or say 'in one file because ...'"


def test_every_module_says_what_it_is() -> None:
    without = [
        str(path.relative_to(ROOT)) for path in FILES if path.read_text().strip() and not first_line(path)
    ]
    assert not without


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
