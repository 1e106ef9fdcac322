"""What the records say, gathered for pages and pictures; nothing is measured here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_geninit.training.evaluate.paired_stats import Lead, best_rate
from torch_geninit.training.report.paper import cost, ensembles, layers, noise, trainings
from torch_geninit.training.report.paper.initialisations import REFERENCE, REGISTRY, label
from torch_geninit.training.report.paper.records import Records


@dataclass(frozen=True)
class Row:
    """Trainings of one initialisation at its best rate.

    Attributes:
        rates: rate -> final validation accuracy of the first seed.
        results: seed -> result, at the best rate.
    """

    name: str
    label: str
    lr: float
    rates: dict[float, float]
    results: dict[int, dict[str, Any]]

    def values(self, key: str, epoch: int | None = None) -> list[float]:
        """Return a value of every seed; of a list the one after ``epoch`` epochs."""
        found = [result[key] for result in self.results.values()]
        return found if epoch is None else [values[epoch] for values in found]

    def lead(self, other: Row, key: str = "test") -> Lead:
        """Return how far this is ahead of another, over the seeds that both have."""
        shared = sorted(self.results.keys() & other.results.keys())
        return Lead.of([self.results[s][key] for s in shared], [other.results[s][key] for s in shared])


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and half the width of its 95 % interval (Student's t), None for one value."""
    return Lead.of(values, [0.0] * len(values)).interval()


@dataclass(frozen=True)
class Found:
    """All that a folder of records holds, in the order of the registry.

    Attributes:
        setup: what the records share; None where nothing was trained.
        seeds: trainings that every initialisation has at its best rate; what some have more (for ensembles)
            is not in ``rows``, so that all means are over the same seeds.
        made: of all records, for the line that says where a page comes from.
    """

    setup: dict[str, Any] | None
    rows: dict[str, Row]
    seeds: int
    ensembles: list[dict[str, Any]]
    noise: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    cost: list[dict[str, Any]]
    made: dict[str, list[dict[str, Any]]]

    @property
    def reference(self) -> Row | None:
        """Trainings from He initialisation."""
        return self.rows.get(REFERENCE)


def _position(name: str) -> tuple[int, str]:
    order = list(REGISTRY)
    return (order.index(name) if name in order else len(order), name)


def read(records: Records) -> Found:
    """Gather the records of a folder.

    Of a generator that was replaced by another file of the same name, the records made last are taken.
    """
    found = {
        module.EXPERIMENT: _newest(records.all(module.EXPERIMENT))
        for module in (trainings, ensembles, noise, layers, cost)
    }
    rows = _rows(found[trainings.EXPERIMENT])
    seeds = min((len(row.results) for row in rows.values()), default=0)
    shared = {
        name: Row(row.name, row.label, row.lr, row.rates, dict(sorted(row.results.items())[:seeds]))
        for name, row in rows.items()
    }
    together = [
        one
        for one in found[ensembles.EXPERIMENT]
        if (row := rows.get(one["settings"]["initialisation"])) and row.lr == one["settings"]["lr"]
    ]
    return Found(
        records.setup(trainings.EXPERIMENT),
        shared,
        seeds,
        sorted(together, key=lambda one: _position(one["settings"]["initialisation"])),
        sorted(found[noise.EXPERIMENT], key=lambda one: one["settings"]["scale"]),
        found[layers.EXPERIMENT],
        found[cost.EXPERIMENT],
        {experiment: [one["made"] for one in own] for experiment, own in found.items()},
    )


def _newest(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep what was measured of the generators' last files: never two contents under one name."""

    def name(settings: dict[str, Any]) -> str:
        return str(settings.get("initialisation") or settings.get("generator"))

    def content(settings: dict[str, Any]) -> str:
        return str(settings.get("content") or settings.get("sha256"))

    last = {}
    for one in sorted(found, key=lambda one: one["made"]["date"]):
        last[name(one["settings"])] = content(one["settings"])
    return [one for one in found if content(one["settings"]) == last[name(one["settings"])]]


def _rows(found: Sequence[dict[str, Any]]) -> dict[str, Row]:
    by_name: dict[str, dict[float, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        settings = one["settings"]
        by_name[settings["initialisation"]][settings["lr"]][settings["seed"]] = one["result"]
    rows = {}
    for name in sorted(by_name, key=_position):
        of_rate = by_name[name]
        first = min(seed for results in of_rate.values() for seed in results)
        grid = {lr: own[first]["validation"][-1] for lr, own in sorted(of_rate.items()) if first in own}
        lr = best_rate(grid)
        rows[name] = Row(name, label(name), lr, grid, of_rate[lr])
    return rows
