"""Pages that repeat what is known elsewhere, and how they are written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_geninit as geninit
from torch_geninit.hub import manifest
from torch_geninit.training.__main__ import build_parser
from torch_geninit.training.release import model_card

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = {DOCS / f"generators/{record.name}.md" for record in manifest.read()}
OTHERS = {DOCS / "results/coverage.md", ROOT / "CHANGELOG.md"}
PROSE = sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - GENERATED - OTHERS)
MOST_WORDS = 27
FIGURE = r"(?<![\d.])\d+(?:\.\d+)?(?![\d.]*\d)"


@pytest.mark.parametrize("name", geninit.__all__)
def test_the_api_pages_name_every_public_symbol(name: str) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    assert re.search(rf"^::: torch_geninit\.{name}$", pages, re.MULTILINE)


@pytest.mark.parametrize("record", manifest.read(), ids=lambda record: record.name)
def test_a_generators_page_is_its_manifest_record(record: manifest.Record) -> None:
    page = (DOCS / f"generators/{record.name}.md").read_text(encoding="utf-8")
    assert page == model_card.render(record), "write it anew: model_card.write(record, page)"


def test_figures_of_the_readme_stand_in_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    figures = set(re.findall(FIGURE, " ".join(rows)))
    results = " ".join(page.read_text(encoding="utf-8") for page in (DOCS / "results").glob("*.md"))
    assert len(figures) > 10
    assert figures - set(re.findall(FIGURE, results)) == set()


@pytest.mark.parametrize(
    "page", PROSE + sorted(GENERATED), ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_training_commands_are_such(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for words in training_commands(page.read_text(encoding="utf-8")):
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}")


def training_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every training command in a page's shell blocks, those that are spelt out."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for name in {"$T", "torch_geninit.training"} & set(words):
                arguments = words[words.index(name) + 1 :]
                if arguments[0] != "COMMAND":
                    # A variable stands for a number.
                    yield ["0" if word.startswith("$") else word for word in arguments]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sentences_are_short(page: Path) -> None:
    long = [s for s in sentences(page.read_text(encoding="utf-8")) if len(s.split()) > MOST_WORDS]
    assert long == []


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page without its code. Cells, items and what a colon starts are such."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?=[#|!-]|\d+\. |  - )", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=.)\|", "\n\n", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for paragraph in re.split(r"\n\s*\n", text):
        yield from re.split(r"(?<=[.:;!?])[*)\"]*\s+", paragraph.strip())
