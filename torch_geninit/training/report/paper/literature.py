"""What others claim, each number with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FILE = Path(__file__).with_name("literature.json")
WHAT = ("before", "after", "lead")


@dataclass(frozen=True)
class Nearest:
    """Which of our numbers is nearest: validation accuracy before training, test accuracy, lead over He."""

    initialisation: str
    what: Literal["before", "after", "lead"]


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        read: where the numbers were read: ``"repository"``, ``"abstract"`` or ``"second hand"``.
        not_comparable: why the number and ours are not of one experiment.
    """

    method: str
    year: int
    source: str
    read: str
    data: str
    claim: str
    nearest: Nearest | None
    not_comparable: str


@dataclass(frozen=True)
class Literature:
    """All claims, and when they were collected."""

    collected: str
    claims: tuple[Claim, ...]


def read(path: Path = FILE) -> Literature:
    """Read the claims.

    Raises:
        ValueError: if a row lacks a field, has one too many, or asks for a number that there isn't.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    claims = []
    for row in content["rows"]:
        try:
            nearest = None if row["nearest"] is None else Nearest(**row["nearest"])
            claim = Claim(**{**row, "nearest": nearest})
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, {row.get('method', row)}: expected the fields of Claim, got {error}"
            ) from error
        if nearest and nearest.what not in WHAT:
            raise ValueError(
                f"{path}, {claim.method}: expected one of {', '.join(WHAT)}, got {nearest.what!r}"
            )
        claims.append(claim)
    return Literature(content["collected"], tuple(claims))
