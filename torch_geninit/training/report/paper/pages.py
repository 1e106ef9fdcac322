"""Pages and pictures of a report, from records alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch_geninit.training.report.paper import pictures, tables
from torch_geninit.training.report.paper.found import Found, read
from torch_geninit.training.report.paper.records import Records

COMMAND = "python -m torch_geninit.training report"


class Page(NamedTuple):
    """A page of a report.

    Attributes:
        name: of its file.
        title, question: its heading, and the line under it.
        experiments: whose records it shows; without any it is not made.
        text: Found -> Markdown below the heading.
        pictures: file -> what draws it there.
    """

    name: str
    title: str
    question: str
    experiments: tuple[str, ...]
    text: Callable[[Found], str]
    pictures: Mapping[str, Callable[[Found, Path], None]]


PAGES = (
    Page(
        "initialisations",
        "Initialisations",
        "How good is a network after training, and how soon, by its initialisation?",
        ("trainings",),
        tables.initialisations,
        {"validation-by-epoch": pictures.epochs},
    ),
    Page(
        "ensembles",
        "Ensembles",
        "How good, and how well calibrated, are networks together, on clean and corrupted images?",
        ("ensembles",),
        tables.ensembles,
        {f"ensembles-{measure}": partial(pictures.severities, measure) for measure in pictures.MEASURES}
        | {f"pairs-{measure}": partial(pictures.pairs, measure) for measure in ("cosine", "disagreement")},
    ),
    Page(
        "noise",
        "Noise",
        "How do accuracy and diversity depend on the noise's amplitude, before and after training?",
        ("noise",),
        tables.noise,
        {"noise-amplitude": pictures.amplitudes},
    ),
    Page(
        "layers",
        "Layers",
        "Does a layer that its VAE reconstructs well gain more from being generated?",
        ("layers",),
        tables.layers,
        {"layers": pictures.layers},
    ),
    Page(
        "cost",
        "Cost",
        "What did the generators cost, and after how many networks is that paid?",
        ("cost",),
        tables.cost,
        {},
    ),
    Page(
        "literature",
        "Beside the literature",
        "What do other methods claim, and which of our numbers is nearest?",
        (),
        tables.literature,
        {},
    ),
)


def has_records(page: Page, found: Found) -> bool:
    """Tell whether there is anything to show."""
    return not page.experiments or any(found.made[experiment] for experiment in page.experiments)


def text_of(page: Page, found: Found) -> str:
    """Return the Markdown of a page that :func:`has_records`."""
    made = [made for experiment in page.experiments for made in found.made[experiment]]
    parts = [f"# {page.title}", page.question]
    parts += [_origin(made), page.text(found)]
    parts += [f"![{page.title}: {name}](pictures/{name}.png)" for name in page.pictures]
    if found.setup and page.experiments not in ((), ("cost",)):
        parts.append(tables.settings(found))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def index(found: Found) -> str:
    """Return the Markdown of the page that leads to the others."""
    rows = [
        (
            f"[{page.title}]({page.name}.md)" if has_records(page, found) else page.title,
            page.question,
            _state(page, found),
        )
        for page in PAGES
    ]
    every = [made for own in found.made.values() for made in own]
    head = "# The comparison, made from records"
    return "\n\n".join([head, _origin(every), tables.markdown(("page", "question", "state"), rows)]) + "\n"


def render(records: str | Path, output: str | Path) -> list[Path]:
    """Write the pages and pictures that there are records for; return the files.

    The index names the others as not measured yet.
    """
    found = read(Records(records))
    output = Path(output)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    written = [_write(output / "index.md", index(found))]
    for page in (page for page in PAGES if has_records(page, found)):
        written.append(_write(output / f"{page.name}.md", text_of(page, found)))
        for name, draw in page.pictures.items():
            path = output / "pictures" / f"{name}.png"
            draw(found, path)
            written.append(path)
    return written


def _state(page: Page, found: Found) -> str:
    if not page.experiments:
        return "from other work"
    count = sum(len(found.made[experiment]) for experiment in page.experiments)
    return f"{count} records" if count else "not measured yet"


def _origin(made: Sequence[dict[str, Any]]) -> str:
    """Return the line that says what made a page, from what, and when."""
    line = f"Made by `{COMMAND}`; written by no hand."
    if not made:
        return line
    dates = sorted({one["date"][:10] for one in made})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{line}\n{len(made)} records of {when}.\n"
        f"Versions: {_all(one['version'] for one in made)}. Machines: {_all(one['machine'] for one in made)}."
    )


def _all(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def _write(path: Path, text: str) -> Path:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
    return path
