"""Whether to trust a prediction: the rule, from right answers on a probe, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

SIGMAS = 1.96
"""Of a 95 % interval."""
CLEARLY = 1.5
"""Times chance that the lower end of the classifier's interval must reach: half above chance is a start that
training keeps; what is nearer to chance is not told from it by 160 images."""
LEAD = 1.96
"""Standard errors by which the class means must be ahead of He initialisation on the same images."""


class Measured(NamedTuple):
    """Right answers on a probe, before any training, with BatchNorm on the statistics of the probe.

    Attributes:
        images: how many were shown.
        classes: of the probe; chance is one in so many.
        size: (C, H, W) that they were brought to.
        right: by the classifier, the generator's own where the model's has other classes; None without one.
        near: by the nearest class mean of the last layer's inputs, each image left out of its class's mean;
            None with less than two images a class.
        gained, lost: images that the class means get right with these weights and not with He
            initialisation, and the other way round; None where the classifier told enough.
        statistics: canonical name of a BatchNorm's buffer -> what it is after the probe.
    """

    images: int
    classes: int
    size: tuple[int, ...]
    right: int | None
    near: int | None
    gained: int | None
    lost: int | None
    statistics: Mapping[str, Tensor]

    @property
    def usual(self) -> int | None:
        """Images that the class means get right with He initialisation."""
        if self.near is None or self.gained is None or self.lost is None:
            return None
        return self.near - self.gained + self.lost

    @property
    def lift(self) -> float:
        """Share of the way from chance to no errors, by the better of the two measures."""
        chance = 1 / self.classes
        best = max(self.right or 0, self.near or 0) / self.images
        return (best - chance) / (1 - chance)

    def __str__(self) -> str:
        parts = []
        if self.right is not None:
            low, high = interval(self.right, self.images)
            parts.append(
                f"{_percent(self.right / self.images)} of {self.images} probe images right "
                f"({_percent(low)} to {_percent(high)}), chance {_percent(1 / self.classes)}"
            )
        if self.near is not None and self.usual is not None:
            parts.append(
                f"nearest class mean {_percent(self.near / self.images)}, "
                f"{_percent(self.usual / self.images)} with He initialisation"
            )
        return "; ".join(parts) or f"nothing to count on {self.images} probe images"


class Verdict(NamedTuple):
    """Whether a generator's prediction for a network is to be trusted.

    Attributes:
        trusted: False keeps the whole network as it is.
        reason: one sentence for the warning.
        measured: what that is judged by; None where layers alone are.
    """

    trusted: bool
    reason: str
    measured: Measured | None = None


class Candidate(NamedTuple):
    """A generator that ``"auto"`` asked: its name, and what it measured or why it was not run."""

    name: str
    verdict: Verdict


def interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, square = right / images, SIGMAS**2 / images
    middle = (share + square / 2) / (1 + square)
    half = SIGMAS * math.sqrt(share * (1 - share) / images + square / (4 * images)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def above_chance(measured: Measured) -> bool:
    """Tell whether the classifier is surely better than chance."""
    if measured.right is None:
        return False
    return interval(measured.right, measured.images)[0] >= CLEARLY / measured.classes


def ahead_of_he(measured: Measured) -> bool:
    """Tell whether the class means are surely better than with He initialisation (McNemar 1947)."""
    if measured.gained is None or measured.lost is None:
        return False
    lead, apart = measured.gained - measured.lost, measured.gained + measured.lost
    return lead > 0 and lead >= LEAD * math.sqrt(apart)


def judge(measured: Measured) -> Verdict:
    """Trust what is surely above chance, or surely separates the classes better than He initialisation."""
    return Verdict(above_chance(measured) or ahead_of_he(measured), str(measured), measured)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
