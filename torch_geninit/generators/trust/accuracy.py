"""The accuracy to expect of a generated network, told from its graph by networks that were measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torch_geninit._utils.checks import expect
from torch_geninit.generators.request import Expectation
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.queries import NORMS, head_nodes

MOST_NETWORKS = 4096
NEAREST = 3
NUMBERS = 9
"""Length of a description."""
LARGEST = 1e9
"""Of the numbers in a record, and of their inverses where they must be positive: nothing overflows then."""
LEAST_NOISE = 1e-3
"""Of noise to signal: equal descriptions make the covariance singular without noise."""
LEAST_HALF = 0.025
"""Half of the 90 % interval that a thousand images leave of an accuracy: none is expected more exactly."""


def describe(architecture: Architecture, distance: float, refused: float, classes: int) -> Tensor:
    """Return the numbers (9,) that networks are compared by; they depend on no name and no order of nodes.

    A head counts as if it had ``classes`` outputs: how many classes a user has says nothing of the body.

    All are log2(1 + c): of the distance from the training networks and the share of values that can't be
    generated, both times 4; of the numbers of parameters, of their values, and of channels of the widest and
    the narrowest weight; of BatchNorms, other norms and additions for each node with a weight of two or more
    dimensions, times 4. With the shares of all primitives instead of these three, sixty measured networks
    told less.
    """
    heads = head_nodes(architecture)
    shapes = [
        (classes, *use.shape[1:]) if index in heads and use.shape[:1] == (heads[index],) else use.shape
        for index, node in enumerate(architecture.nodes)
        for use in node.parameters
    ]
    widths = [shape[0] for shape in shapes if len(shape) > 1]
    layers = sum(any(len(use.shape) > 1 for use in node.parameters) for node in architecture.nodes)
    kinds = Counter(node.op for node in architecture.nodes)
    others = sum(kinds[op] for op in NORMS) - kinds["batch_norm"]
    counts = (
        4 * distance,
        4 * refused,
        len(shapes),
        sum(math.prod(shape) for shape in shapes),
        max(widths, default=0),
        min(widths, default=0),
        *(4 * count / max(layers, 1) for count in (kinds["batch_norm"], others, kinds["add"])),
    )
    return torch.tensor([math.log2(1 + count) for count in counts])


class MeasuredNetworks:
    """Gaussian process over networks whose accuracy was measured.

    After Rasmussen & Williams 2006, chapter 2::

        accuracy = chance + f(x) + noise,   cov(f(x), f(x')) = s^2 exp(-|x - x'| / l)

    with x the description of a graph, each number divided by its spread. Far from all that was measured it
    falls back to chance. The interval is the process's own, widened by ``quantile`` so that
    it holds nine in ten of the measured networks, each left out in turn, and no narrower than what
    measuring on a thousand images leaves open.

    Args:
        record: entry ``measured`` of a generator's config: ``networks`` (names), ``points`` (descriptions),
            ``accuracy``, ``spread``, ``chance``, ``length``, ``signal`` and ``noise`` (standard deviations),
            ``quantile``, ``images``, and ``least``, the lower end of the interval from which a network is
            trusted.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.names: list[str] = record["networks"]
        self.spread = torch.tensor(record["spread"], dtype=torch.float64)
        self.points = torch.tensor(record["points"], dtype=torch.float64) / self.spread
        self.chance, self.length = float(record["chance"]), float(record["length"])
        self.signal, self.noise = float(record["signal"]), float(record["noise"])
        self.quantile, self.images = float(record["quantile"]), str(record["images"])
        self.least = float(record["least"])
        self.lead = torch.tensor(record["accuracy"], dtype=torch.float64) - self.chance

    @staticmethod
    def check(record: Any) -> None:
        """Raise a ValueError naming the entry of the record that is not valid."""
        expect(isinstance(record, dict), "measured", "an object", record)
        names = record.get("networks")
        count = len(names) if isinstance(names, list) else 0
        valid = 2 <= count <= MOST_NETWORKS and all(isinstance(name, str) for name in names)
        expect(valid, "measured.networks", f"a list of 2 to {MOST_NETWORKS} names", names)
        points, spread = record.get("points"), record.get("spread")
        expect(_positive(spread), "measured.spread", "positive numbers", spread)
        same = isinstance(points, list) and len(points) == count
        same = same and all(_numbers(point) and len(point) == len(spread) for point in points)
        expect(same, "measured.points", f"{count} descriptions of {len(spread)} numbers", points)
        expect(len(spread) == NUMBERS, "measured.spread", f"{NUMBERS} numbers", spread)
        accuracy = record.get("accuracy")
        shares = _numbers(accuracy) and len(accuracy) == count and 0 <= min(accuracy) <= max(accuracy) <= 1
        expect(shares, "measured.accuracy", f"{count} shares", accuracy)
        for name in ("chance", "length", "signal", "noise", "quantile", "least"):
            value = record.get(name)
            expect(_positive([value]), f"measured.{name}", "a positive number", value)
        least = LEAST_NOISE * record["signal"]
        expect(record["noise"] >= least, "measured.noise", f"at least {least}", record["noise"])
        expect(isinstance(record.get("images"), str), "measured.images", "a text", record.get("images"))

    def covariance(self) -> Tensor:
        """Return that of the measured accuracies, (M, M)."""
        between = torch.cdist(self.points, self.points, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = self.signal**2 * torch.exp(-between / self.length)
        return kernel + self.noise**2 * torch.eye(len(kernel), dtype=kernel.dtype)

    @cached_property
    def _factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self.covariance())
        return factor

    def __call__(self, description: Tensor) -> Expectation:
        """Say what to expect of a network of that description that is not among the measured ones."""
        x = description.double() / self.spread
        away = (self.points - x).norm(dim=1)
        covariance = self.signal**2 * torch.exp(-away / self.length)
        both = torch.cholesky_solve(torch.stack([self.lead, covariance], 1), self._factor)
        mean = self.chance + float(covariance @ both[:, 0])
        variance = self.signal**2 + self.noise**2 - float(covariance @ both[:, 1])
        half = max(self.quantile * math.sqrt(max(variance, 0.0)), LEAST_HALF)
        nearest = away.argsort()[:NEAREST].tolist()
        return Expectation(
            accuracy=_share(mean),
            low=_share(mean - half),
            high=_share(mean + half),
            distance=float(away.min()),
            nearest=tuple(self.names[index] for index in nearest),
            images=self.images,
        )

    def at_most(self, expected: Expectation) -> Expectation:
        """Expect chance, at best ``expected``: the interval reaches from below chance to its end."""
        return expected._replace(
            accuracy=_share(self.chance),
            low=_share(min(expected.low, self.chance - LEAST_HALF)),
            high=_share(max(expected.high, self.chance + LEAST_HALF)),
        )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(type(value) in (int, float) and abs(value) <= LARGEST for value in values)
    )


def _positive(values: Any) -> bool:
    return _numbers(values) and min(values) >= 1 / LARGEST
