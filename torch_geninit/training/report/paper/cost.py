"""What the generators cost to make, and after how many networks that is paid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch_geninit.hub import manifest
from torch_geninit.training.report.paper.records import Records

EXPERIMENT = "cost"
WATTS_PER_CORE = 15.0
"""Assumed, not measured: a busy core of a server, with its share of memory and cooling."""


def record(records: Records) -> None:
    """Record what each shipped generator cost, by the manifest."""
    for one in manifest.read():
        settings = {"generator": one.name, "sha256": one.sha256}
        cost = {"kind": one.kind, "core_hours": one.core_hours, "machine": one.machine}
        records.make(EXPERIMENT, settings, {}, lambda cost=cost: cost)  # type: ignore[misc]


def kilowatt_hours(core_hours: float) -> float:
    """Return the energy of so many hours of one core, at :data:`WATTS_PER_CORE`."""
    return core_hours * WATTS_PER_CORE / 1000


class Reached(NamedTuple):
    """When trainings reach an accuracy: epochs and seconds, None where some seed does not."""

    epochs: float | None
    seconds: float | None
    seeds: int
    of: int


def reached(results: Sequence[dict[str, Any]], threshold: float) -> Reached:
    """Return mean epochs and seconds until ``validation`` is ``threshold`` or more; 0: before training.

    Seconds count loading, generating, calibrating and training.
    """
    epochs: list[int] = []
    seconds: list[float] = []
    for one in results:
        first = next((e for e, value in enumerate(one["validation"]) if value >= threshold), None)
        if first is not None:
            epochs.append(first)
            start = one["load_and_generate_seconds"] + one["calibration_seconds"]
            seconds.append(start + sum(one["train_seconds"][:first]))
    whole = len(epochs) == len(results) and bool(results)
    return Reached(
        statistics.mean(epochs) if whole else None,
        statistics.mean(seconds) if whole else None,
        len(epochs),
        len(results),
    )


def networks_until_paid(core_hours: float, seconds_saved: float | None, threads: int = 1) -> int | None:
    """Return after how many networks a generator has saved what it cost; None if it never does."""
    if seconds_saved is None or seconds_saved <= 0:
        return None
    return math.ceil(core_hours * 3600 / (seconds_saved * threads))
