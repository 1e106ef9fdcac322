"""Each comparison at its own best learning rate: all rates with the first seed, the others at the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_geninit.training.runs.task_queue import TaskQueue

Record = dict[str, Any]
Training = tuple[float, int]
"""Learning rate and seed."""


@dataclass
class Search:
    """What is trained with several rates and seeds.

    Attributes:
        queue: holds the records, ``lr<rate>/<seed>``.
        rates: the grid.
        train: returns the record of one training.
        choose: returns the best rates, one or several, of the first seed's records.
        chosen: these, once they are known.
        tasks: every training that is needed, once the rates are known.
    """

    queue: TaskQueue
    rates: Sequence[float]
    train: Callable[[Training], Record]
    choose: Callable[[Sequence[Record]], Sequence[float]]
    chosen: list[float] = field(default_factory=list)
    tasks: dict[str, Training] = field(default_factory=dict)

    def complete(self) -> dict[str, Record]:
        """Return all records by name, when this process or another has made them."""
        return dict(zip(self.tasks, self.queue.complete(self.tasks, self.train), strict=True))

    def first(self, seed: int) -> dict[str, Training]:
        """Return the trainings that the rates are chosen by."""
        return {f"lr{lr:g}/{seed}": (lr, seed) for lr in self.rates}

    def is_rated(self, seed: int) -> bool:
        """Tell whether the rates can be chosen without waiting."""
        first = self.first(seed)
        return len(first) == 1 or len(self.queue.of(first)) == len(first)

    def rate(self, seeds: Sequence[int]) -> None:
        """Choose the rates, once the first seed's trainings are there, and say what else is needed."""
        first = self.first(seeds[0])
        if len(first) == 1:  # nothing to wait for
            self.chosen = list(self.rates)
        else:
            self.chosen = list(dict.fromkeys(self.choose(self.queue.complete(first, self.train))))
        others = {f"lr{lr:g}/{seed}": (lr, seed) for lr in self.chosen for seed in seeds}
        self.tasks = first | others


def search_rates(searches: Sequence[Search], seeds: Sequence[int]) -> None:
    """Begin every training that is needed; several processes may share the work.

    Another process is waited for only when no search has anything left to begin.
    """
    for search in searches:
        search.queue.begin(search.first(seeds[0]), search.train)
    unrated = list(searches)
    while unrated:
        for search in [one for one in unrated if one.is_rated(seeds[0])] or unrated[:1]:
            search.rate(seeds)
            search.queue.begin(search.tasks, search.train)
            unrated.remove(search)
