"""Compare initialisations of the same trainings: each at its best rate, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Lead:
    """How far one initialisation is ahead of another, from trainings that share seeds.

    Attributes:
        mean: over the pairs.
        error: standard error of the mean; infinite for one pair.
        pairs: how many.
    """

    mean: float
    error: float
    pairs: int

    @classmethod
    def of(cls, values: Sequence[float], reference: Sequence[float]) -> Lead:
        """Pair two sequences of the same seeds' results."""
        leads = [value - other for value, other in zip(values, reference, strict=True)]
        error = statistics.stdev(leads) / len(leads) ** 0.5 if len(leads) > 1 else math.inf
        return cls(statistics.mean(leads), error, len(leads))

    def half_width(self) -> float:
        """Return half the width of the mean's 95 % interval (Student's t)."""
        return self._bound(0.975)

    def interval(self) -> tuple[float, float | None]:
        """Return the mean and :meth:`half_width`, None for a single pair."""
        half = self.half_width()
        return self.mean, half if math.isfinite(half) else None

    def surely_behind(self) -> bool:
        """Tell whether the mean is below 0 beyond chance: one-sided t test at 5 %."""
        return self.mean < -self._bound(0.95)

    def _bound(self, quantile: float) -> float:
        from scipy.stats import t

        return float(t.ppf(quantile, self.pairs - 1)) * self.error if self.pairs > 1 else math.inf


def best_rate(results: Mapping[float, float]) -> float:
    """Return the learning rate whose result is highest; of equal ones the first."""
    return max(results, key=lambda rate: results[rate])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; of one value the latter is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


class Pair(NamedTuple):
    """Records of one network from both initialisations."""

    he: dict[str, Any]
    generated: dict[str, Any]

    def lead(self) -> Lead | None:
        """Return the lead over He; None where nothing was generated."""
        made = self.generated.get("accuracy")
        return None if made is None else Lead.of(made, self.he["accuracy"])
