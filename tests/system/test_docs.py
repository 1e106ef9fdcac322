"""Documentation that runs: the Python blocks of the pages, in order, and every docstring's example."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import torch_geninit
from torch_geninit.planning import measure

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
def test_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Networks are tried on the fewest images that will do: it takes most of the time.
    monkeypatch.setattr(measure, "BUDGET", 0.0)
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
    module = importlib.import_module(name)
    names = {"torch": torch, "geninit": torch_geninit}
    failed, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", [name for name in torch_geninit.__all__ if name != "__version__"])
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    public = getattr(torch_geninit, name)
    text = inspect.getdoc(public)
    assert text, f"{name} has no docstring"
    assert text != inspect.getdoc(getattr(public, "__base__", None)), f"{name} has its base class's docstring"
    assert re.search(r"^Examples:$", text, re.MULTILINE), f"{name} has no section Examples"
    examples = doctest.DocTestParser().get_examples(text)
    assert examples, f"{name} has no example"
    assert not [e.source for e in examples if e.options.get(doctest.SKIP)], f"an example of {name} isn't run"


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
