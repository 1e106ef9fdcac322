"""Lay out docs/results/coverage.md: a section for each suite of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch_geninit._utils.tables import Table

HEADER = (
    *("model", "nodes", "generated", "2-D or more", "kept, by reason"),
    *("trace", "plan", "predict", "write", "memory", "of"),
)
NUMBERS = frozenset(range(len(HEADER))) - {0, HEADER.index("kept, by reason")}
INTRODUCTION = """# Coverage

What `ghn_` does to models that others wrote, with the trust check off; with it on, a network that is
not surely better than chance on the generator's probe is left as it is. `python -m torch_geninit.training
coverage` rewrites it section by section, and `pytest -m full` asserts on every model what the first line of
its section says.

Classifiers have as many classes as the generator, so heads are generated too. "2-D or more" is the share of
tensors of two or more dimensions that are generated. "Kept" counts the parameters that keep their values, by
the reasons below each table. Times are CPU milliseconds of one thread, one run each; planning includes
choosing a generator and reading its file. "Memory" is the most extra megabytes that tracing, planning,
predicting and writing take in a process that already holds the model; "of" has the megabytes of the model's
own parameters.

Detection models resize images to 800 pixels and ask for values of tensors, so they are traced on a copy with
data: that is their time and memory.
"""


@dataclass
class Row:
    """What happened to a model.

    Attributes:
        name: of the model.
        failure: exception or broken promise, empty if there is none.
        nodes: of its graph.
        generated, total: parameters, tied ones under each of their names.
        matrices, all_matrices: the same for tensors of two or more dimensions.
        kept: reason -> parameters left for it.
        milliseconds: CPU time of trace, plan, predict and write.
        extra_bytes: peak memory of these four over the process that already held the model.
        bytes: of the model's parameters.
        finite: whether all values of the outputs are; None if there was no output to look at.
    """

    name: str
    failure: str = ""
    nodes: int = 0
    generated: int = 0
    total: int = 0
    matrices: int = 0
    all_matrices: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    milliseconds: tuple[float, ...] = ()
    extra_bytes: int | None = None
    bytes: int = 0
    finite: bool | None = None

    @property
    def share(self) -> float:
        """Share of tensors of two or more dimensions that are generated."""
        return self.matrices / self.all_matrices if self.all_matrices else 1.0


def section(rows: Sequence[Row], heading: str, library: str) -> str:
    """Lay rows out as the Markdown of one section."""
    letters: dict[str, str] = {}
    for row in rows:
        for reason in row.kept:
            letters.setdefault(reason, _letter(len(letters)))
    good = [row for row in rows if not row.failure]
    lines = [f"## {heading}", "", _summary(rows, library), ""]
    if good:
        lines.append(Table(HEADER, [_cells(row, letters) for row in good], numbers=NUMBERS).markdown())
    if letters:
        lines += ["", *(f"- **{letter}**: {reason}" for reason, letter in letters.items())]
    bad = [row for row in rows if row.failure]
    if bad:
        lines += ["", "Failed:", "", *(f"- {row.name}: {row.failure}" for row in bad)]
    return "\n".join(lines)


def _cells(row: Row, letters: Mapping[str, str]) -> tuple[str, ...]:
    kept = ", ".join(f"{count} {letters[reason]}" for reason, count in row.kept.most_common())
    return (
        row.name,
        str(row.nodes),
        f"{row.generated}/{row.total}",
        f"{100 * row.share:.1f} %",
        kept or "-",
        *(f"{value:.0f}" for value in row.milliseconds),
        _megabytes(row.extra_bytes),
        _megabytes(row.bytes),
    )


def _summary(rows: Sequence[Row], library: str) -> str:
    good = [row for row in rows if not row.failure]
    text = f"{len(good)} of {len(rows)} models ({library}): no exception, parameters finite and accounted for"
    looked = [row for row in good if row.finite is not None]
    text += ", outputs finite" if len(looked) == len(good) else f"; outputs finite where run ({len(looked)})"
    if not good:
        return text + "."
    lowest = min(good, key=lambda row: row.share)
    matrices = sum(row.matrices for row in good) / max(1, sum(row.all_matrices for row in good))
    enough = {percent: sum(100 * row.share >= percent for row in good) for percent in (95, 80)}
    return (
        f"{text}. Of all tensors of two or more dimensions {100 * matrices:.1f} % are generated: "
        f"at least 95 % on {enough[95]} models, at least 80 % on {enough[80]}, least on {lowest.name} "
        f"({100 * lowest.share:.1f} %)."
    )


def _letter(index: int) -> str:
    return (chr(97 + index // 26 - 1) if index >= 26 else "") + chr(97 + index % 26)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}" if count >= 1e6 else f"{count / 1e6:.1f}"
