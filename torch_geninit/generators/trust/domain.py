"""How far a network is from those a generator was trained on, read off the graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch_geninit.generators.entry import Entry
from torch_geninit.generators.request import Expectation, Request, Verdict
from torch_geninit.generators.trust.accuracy import MeasuredNetworks, describe
from torch_geninit.graph.architecture import Architecture, Node, Shape
from torch_geninit.graph.queries import NORMS

WIDTHS = ("widest convolution (log2)", "narrowest convolution (log2)")
MEASURES = ("convolutions (log2)", "linear layers (log2)", *WIDTHS, "resolutions")
"""What every network is measured by, besides its shares of primitives."""
PLACES = ("bias", "token", "embedding", "attention")
"""Primitives that read a table of positions."""


@dataclass(frozen=True)
class Profile:
    """What two networks are compared by.

    Attributes:
        patterns: number of nodes by local pattern, a primitive with those before and after it.
        measures: numbers of layers, widths, stages (log2) and the share of each primitive among the nodes.
    """

    patterns: Mapping[str, int]
    measures: Mapping[str, float]


def profile(architecture: Architecture) -> Profile:
    """Describe an architecture by its local patterns and global measures, in linear time."""
    nodes = architecture.nodes
    stems = {target for source, target in architecture.edges if nodes[source].op == "input"}
    placed = any(_is_table(use.shape) for node in nodes if node.op in PLACES for use in node.parameters)
    names = [_name(node, index in stems, placed) for index, node in enumerate(nodes)]
    before: list[set[str]] = [set() for _ in nodes]
    after: list[set[str]] = [set() for _ in nodes]
    for source, target in architecture.edges:
        before[target].add(names[source])
        after[source].add(names[target])
    patterns = Counter(
        f"{','.join(sorted(before[i]))}>{name}>{','.join(sorted(after[i]))}" for i, name in enumerate(names)
    )
    weights: dict[str, list[Shape]] = {"conv": [], "linear": []}
    for node in nodes:
        if node.op in weights:
            weights[node.op] += [use.shape for use in node.parameters if use.role == "weight"]
    # Pooling to 1x1 and averaging the positions away are the same network, so one position is no resolution.
    extents = {math.prod(node.shape[2:]) for node in nodes if len(node.shape) > 2} - {1}
    measures = {f"share of {op}": count / len(nodes) for op, count in Counter(n.op for n in nodes).items()}
    widths = [shape[0] for shape in weights["conv"]]
    counts = (
        1 + len(weights["conv"]),
        1 + len(weights["linear"]),
        max(widths, default=1),
        min(widths, default=1),
        1 + len(extents),
    )
    measures.update(zip(MEASURES, map(math.log2, counts), strict=True))
    return Profile(patterns, measures)


def _is_table(shape: Shape) -> bool:
    return sum(extent > 1 for extent in shape) > 1


def _name(node: Node, stem: bool, placed: bool) -> str:
    """Name a primitive as patterns do.

    The same kernel means something else to a convolution that strides, reaches farther or sees some channels
    only, and a norm without parameters leaves its inputs at other scales. How far a stem strides is a matter
    of the images' size. Attention in a network that is not ``placed`` doesn't know where its tokens are.
    """
    if node.op == "attention" and not placed:
        return "placeless attention"
    if node.op in NORMS and not node.parameters:
        return f"bare {node.op}"
    if node.op != "conv":
        return node.op
    stride, groups = max(node.attribute("stride", (1,))), node.attribute("groups", 1)
    depthwise = any(use.role == "weight" and use.shape[1] == 1 for use in node.parameters)
    qualities = (
        ("dilated", max(node.attribute("dilation", (1,))) > 1),
        ("strided" if stem else f"stride {stride}", stride > 1),
        ("depthwise" if depthwise else "grouped", groups > 1),
    )
    return " ".join([*(name for name, has in qualities if has), "conv"])


def summarise(profiles: Iterable[Profile]) -> dict[str, Any]:
    """Return the patterns and the range of each measure over training networks, for a generator's config."""
    patterns: set[str] = set()
    ranges: dict[str, list[float]] = {}
    seen = list(profiles)
    for one in seen:
        patterns.update(one.patterns)
        for name in one.measures:
            ranges.setdefault(name, [math.inf, -math.inf])
    for name, bounds in ranges.items():
        values = [one.measures.get(name, 0.0) for one in seen]
        bounds[0], bounds[1] = round(min(values), 4), round(max(values), 4)
    return {"patterns": sorted(patterns), "ranges": dict(sorted(ranges.items()))}


def distance(network: Profile, trained: Mapping[str, Any]) -> tuple[float, str]:
    """Measure how far ``network`` is outside the training networks, and name what is farthest.

    d = share of nodes whose local pattern was never seen + sum over measures of the excess over the range
    seen (an octave of depth or width counts 1, a share of nodes as itself).
    """
    known = set(trained["patterns"])
    total = sum(network.patterns.values())
    strange = Counter({p: n for p, n in network.patterns.items() if p not in known})
    parts = {}
    if strange:
        (most, _), *_ = strange.most_common(1)
        parts[f"{sum(strange.values())} of {total} nodes in patterns never seen, as {most!r}"] = (
            sum(strange.values()) / total
        )
    ranges: Mapping[str, tuple[float, float]] = trained["ranges"]
    for name in set(network.measures) | set(ranges):
        value = network.measures.get(name, 0.0)
        low, high = ranges.get(name, (0.0, 0.0))
        excess = max(low - value, value - high, 0.0)
        if excess > 1e-3:
            parts[_in_words(name, value, low, high)] = excess
    if not parts:
        return 0.0, "inside the training networks"
    return sum(parts.values()), max(parts, key=lambda reason: (parts[reason], reason))


def _in_words(name: str, value: float, low: float, high: float) -> str:
    if name not in MEASURES:
        return f"{name} {value:.2f}, trained on {low:.2f} to {high:.2f}"
    # All are logarithms, those of counts of 1 + the count.
    less = 0 if name in WIDTHS else 1
    what = name.removesuffix(" (log2)")
    number, least, most = (f"{2**exponent - less:.0f}" for exponent in (value, low, high))
    return f"{what}: {number}, trained on {least} to {most}"


def judge(
    request: Request, trained: Mapping[str, Any], classes: int, measured: MeasuredNetworks | None = None
) -> Verdict:
    """Trust a network if every matrix can be generated, it is near enough, and surely starts above chance.

    Surely: the lower end of the interval of the expected accuracy is the record's ``least`` or more.
    """
    if request.architecture is None:
        raise ValueError("the plan has no graph to judge")
    d, reason = distance(profile(request.architecture), trained)
    refused = _refused(request)
    if refused:
        first, several = refused[0], "s" if len(refused) > 1 else ""
        return Verdict(
            False,
            d,
            f"{len(refused)} layer{several} can't be generated, the first is {first.name} ({first.reason})",
        )
    threshold = float(trained["threshold"])
    reason = f"distance {d:.3f}, trusted up to {threshold:.3f}: {reason}"
    if d > threshold or measured is None:
        return Verdict(d <= threshold, d, reason)
    expected = expectation(request, d, trained, classes, measured)
    if expected.low < measured.least:
        return Verdict(
            False,
            d,
            f"the 90 % interval of its expected accuracy starts at {100 * expected.low:.1f} %, trusted from "
            f"{100 * measured.least:.0f} %",
        )
    return Verdict(True, d, reason)


def expectation(
    request: Request, distance: float, trained: Mapping[str, Any], classes: int, measured: MeasuredNetworks
) -> Expectation:
    """Say what accuracy to expect of the network of ``request``; what the user keeps is taken as generated.

    Of a network outside of those of training chance is expected, and at most what the measured ones tell:
    most of them start at chance, and their descriptions don't say which.
    """
    if request.architecture is None:
        raise ValueError("the plan has no graph to tell from")
    sizes = {entry.name: math.prod(entry.shape) for entry in request.entries}
    refused = sum(sizes[entry.name] for entry in request.skipped) / max(1, sum(sizes.values()))
    expected = measured(describe(request.architecture, distance, refused, classes))
    if _refused(request) or distance > float(trained["threshold"]):
        expected = measured.at_most(expected)
    return expected._replace(from_training=distance)


def _refused(request: Request) -> list[Entry]:
    return [e for e in request.entries if e.route.value == "skipped" and len(e.shape) > 1]
