"""Pages: every table and picture from records alone, and committed pages from committed records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from torch_geninit.training.__main__ import main
from torch_geninit.training.report.paper import literature
from torch_geninit.training.report.paper.found import read
from torch_geninit.training.report.paper.initialisations import REGISTRY, label
from torch_geninit.training.report.paper.pages import PAGES, Page, has_records, index, render, text_of
from torch_geninit.training.report.paper.records import Records, digest

COMMITTED = Path(__file__).parents[4] / "docs/results/paper"


@pytest.fixture(scope="module")
def rendered(synthetic: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    render(synthetic.folder, folder)
    return folder


def rows_of(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_page_and_picture_is_made(rendered: Path) -> None:
    for page in PAGES:
        text = (rendered / f"{page.name}.md").read_text()
        assert "|" in text
        for picture in re.findall(r"\]\((pictures/[^)]+)\)", text):
            assert (rendered / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list((rendered / "pictures").iterdir())) == sum(len(page.pictures) for page in PAGES)


def test_the_command_renders_records_alone(synthetic: Records, rendered: Path, tmp_path: Path) -> None:
    main(["report", "--output", str(tmp_path / "again"), "--records", str(synthetic.folder)])
    for page in PAGES:
        again = (tmp_path / "again" / f"{page.name}.md").read_text()
        assert again == (rendered / f"{page.name}.md").read_text()


def test_initialisations_stand_at_their_best_rate_beside_he(rendered: Path) -> None:
    table = {row[0]: row for row in rows_of(rendered / "initialisations.md")[2:10]}
    assert list(table) == [label(name) for name in REGISTRY]
    # Seeds differ alike: the lead has no error, the mean of 0.39, 0.391 and 0.392 has.
    assert table["He"][1:5] == ["0.1", "10.0 ± 0.0", "40.1 ± 0.2", "–"]
    assert table["Xavier"][3:5] == ["41.1 ± 0.2", "+1.0 ± 0.0"]


def test_seconds_count_the_start(rendered: Path) -> None:
    text = (rendered / "initialisations.md").read_text()
    assert "| He | 1.0 epochs, 11 s | 2.0 epochs, 31 s | 2.0 epochs, 31 s | 0 of 3 seeds |" in text


def test_noise_stands_by_amplitude(rendered: Path) -> None:
    assert [row[0] for row in rows_of(rendered / "noise.md")[2:5]] == ["0", "0.5", "2"]


def test_layers_stand_by_reconstruction_error(rendered: Path) -> None:
    table = rows_of(rendered / "layers.md")[2:5]
    assert [row[:2] for row in table] == [
        ["`b.weight`", "0.700"],
        ["`a.weight`", "0.800"],
        ["`conv1.weight`", "0.900"],
    ]
    assert "correlation of the two: -1.00" in (rendered / "layers.md").read_text()


def test_the_index_names_what_is_not_measured(tmp_path: Path) -> None:
    render(tmp_path / "none", tmp_path / "pages")
    made = {path.stem for path in (tmp_path / "pages").glob("*.md")}
    assert made == {"index"} | {page.name for page in PAGES if not page.experiments}
    states = [row[2] for row in rows_of(tmp_path / "pages/index.md")[2:]]
    assert states == ["not measured yet" if page.experiments else "from other work" for page in PAGES]


def test_a_replaced_generator_is_shown_by_its_last_file_alone(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for sha, hours in (("a", 1.0), ("b", 2.0)):
        cost = {"kind": "ghn", "core_hours": hours, "machine": "one"}
        settings = {"generator": "some", "sha256": sha}
        records.make("cost", settings, {}, lambda cost=cost: cost)
        path = tmp_path / "cost" / f"{digest(settings)}.json"
        record = json.loads(path.read_text())
        record["made"]["date"] = f"2026-0{3 - int(hours)}-01T00:00:00+00:00"
        path.write_text(json.dumps(record))
    assert [one["result"]["core_hours"] for one in read(records).cost] == [1.0]


def test_every_claim_has_a_source() -> None:
    for claim in literature.read().claims:
        assert claim.source and claim.claim and claim.not_comparable
        assert claim.read in ("repository", "abstract", "second hand")
        assert claim.nearest is None or claim.nearest.initialisation in REGISTRY


def test_a_claim_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "literature.json"
    path.write_text('{"collected": "2026", "rows": [{"method": "a", "nearest": null}]}')
    with pytest.raises(ValueError, match="a: expected the fields of Claim"):
        literature.read(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_committed_pages_are_their_records(page: Page) -> None:
    found = read(Records(COMMITTED / "records"))
    file = COMMITTED / f"{page.name}.md"
    assert file.exists() == has_records(page, found)
    if file.exists():
        text = file.read_text(encoding="utf-8")
        assert text == text_of(page, found), "make it anew: python -m torch_geninit.training report"
        for picture in re.findall(r"\]\((pictures/[^)]+)\)", text):
            assert (COMMITTED / picture).exists()


def test_the_committed_index_is_of_these_records() -> None:
    found = read(Records(COMMITTED / "records"))
    assert (COMMITTED / "index.md").read_text(encoding="utf-8") == index(found)
