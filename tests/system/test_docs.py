"""Documentation that runs: the Python blocks of the pages, in order, and every docstring's example."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import torch_geninit

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/get-started.md",
    "docs/guide/methods.md",
    "docs/guide/ensembles.md",
    "docs/guide/parts.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    code = "\n".join(blocks)
    exec(compile(code, page, "exec"), {})  # noqa: S102 - running the page is the test


def modules() -> list[str]:
    found = pkgutil.walk_packages(torch_geninit.__path__, "torch_geninit.")
    return sorted(m.name for m in found if ".training" not in m.name)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("**/*.md") if ".venv" not in p.parts)
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        # A badge of the repository that the page is read in has no address here.
        if not target.startswith(("http://", "https://", "../../actions/")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
