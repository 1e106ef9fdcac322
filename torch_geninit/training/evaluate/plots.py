"""Pictures of what was measured: one colour and marker for each initialisation and family, in all of them.

Colours are those of M. Okabe and K. Ito, Color Universal Design (2008), which people with any kind of colour
vision tell apart. Markers differ too, and letters are large enough for half the size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch_geninit.training.evaluate.paired_stats import Pair, mean_and_deviation
from torch_geninit.training.networks.families import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
PALETTE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito's, without yellow: a thin yellow line on white is hard to see."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Style(NamedTuple):
    """How an initialisation or a family looks."""

    colour: str
    marker: str
    label: str


INITIALISATIONS: Mapping[str, Style] = {
    "pytorch": Style(SKY, "D", "PyTorch's default"),
    "he": Style(BLACK, "o", "He"),
    "xavier": Style(BLACK, "s", "Xavier"),
    "orthogonal": Style(GREEN, "s", "orthogonal"),
    "lsuv": Style(PURPLE, "P", "LSUV"),
    "vae-cifar10": Style(ORANGE, "D", "VAE"),
    "ghn-cifar10": Style(BLUE, "^", "GHN"),
    "noise-ghn-cifar10": Style(RED, "v", "noise GHN"),
    "ghn-cifar10-residual": Style(SKY, "P", "GHN, residual"),
    "ghn-cifar10-branched": Style(GREEN, "X", "GHN, branched"),
    "ghn-cifar10-depthwise": Style(PURPLE, "h", "GHN, depthwise"),
    "ghn-cifar10-tokens": Style(SKY, "*", "GHN, tokens"),
    "ghn-natural64-residual": Style(BLUE, "P", "GHN, natural images"),
}
"""Name on the command line -> style; legends have this order."""


def _looks() -> Iterator[tuple[str, str]]:
    """Yield all pairs of colour and marker; neighbours differ in both."""
    for turn, index in product(range(len(MARKERS)), range(len(PALETTE))):
        yield PALETTE[index], MARKERS[(index + turn) % len(MARKERS)]


POPULAR = (
    "residual",
    "vgg",
    "densenet",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3",
    "mnasnet",
    "efficientnet",
    "shufflenet_v2",
    "convnext-imagenet",
    "convmixer",
    "vit",
    "mixer-imagenet",
)
FAMILY_STYLES: Mapping[str, Style] = {
    family: Style(*look, family) for family, look in zip((*FAMILIES, *POPULAR), _looks(), strict=False)
}
"""Family of networks -> style."""


def styles(names: Iterable[str], known: Mapping[str, Style] = INITIALISATIONS) -> dict[str, Style]:
    """Return the style of each initialisation, a name or a file, in the order of legends.

    Those that ``known`` lacks come last, in their own order, and look like none of it.
    """
    short = {name: Path(name).name.removesuffix(".safetensors") for name in names}
    order = list(known)
    found = sorted((n for n in short if short[n] in known), key=lambda name: order.index(short[name]))
    taken = {(style.colour, style.marker) for style in known.values()}
    colours = {known[short[name]].colour for name in found}
    free = [look for look in _looks() if look not in taken]
    looks = cycle(sorted(free, key=lambda look: look[0] in colours))
    others = {name: Style(*next(looks), short[name]) for name in short if short[name] not in known}
    return {name: known[short[name]] for name in found} | others


def ensembles(found: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy, NLL and ECE of ensembles over severity, 0 for clean images, with standard errors."""
    kinds = {"accuracy": "accuracy (%)", "nll": "NLL (nats)", "ece": "ECE (%)"}
    by_zoo = {one["zoo"]: one for one in found}
    with picture(path, (13, 4.6), columns=len(kinds)) as panels:
        for axes, (key, title) in zip(panels, kinds.items(), strict=True):
            unit = 1 if key == "nll" else 100
            for zoo, style in styles(by_zoo).items():
                one = by_zoo[zoo]
                rows = [one["together"]["clean"], *one["together"]["by severity"].values()]
                values, errors = zip(*(row[key] for row in rows), strict=True)
                axes.errorbar(
                    range(len(rows)),
                    [unit * value for value in values],
                    [unit * (error or 0) for error in errors],
                    color=style.colour,
                    marker=style.marker,
                    label=f"{style.label}, {one['networks']} networks",
                )
            axes.set_xlabel("severity")
            axes.set_title(title)
            axes.grid(alpha=0.3)
        panels[0].legend()


def initialisations(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw validation accuracy by epoch: mean and standard deviation over seeds.

    ``found`` is a :func:`~torch_geninit.training.evaluate.initialisations.summary`.
    """
    from matplotlib.ticker import MaxNLocator

    with picture(path, (8, 6)) as (axes,):
        for name, style in styles(found).items():
            row = found[name]
            means, deviations = (
                [100 * value for value in part] for part in zip(*row["validation"], strict=True)
            )
            epochs = range(len(means))
            label = f"{style.label}, lr {row['lr']:g}, {len(row['seeds'])} seeds"
            axes.plot(epochs, means, color=style.colour, marker=style.marker, label=label)
            low, high = zip(*((m - d, m + d) for m, d in zip(means, deviations, strict=True)), strict=True)
            axes.fill_between(epochs, low, high, color=style.colour, alpha=0.2, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()


def first_epoch(pairs: Sequence[Pair], path: str | Path) -> None:
    """Draw accuracy from generated weights over that from He initialisation: mean, deviation over seeds."""
    generated = [pair for pair in pairs if pair.lead() is not None]
    with picture(path, (9.6, 7.2)) as (axes,):
        families = sorted({pair.he["family"] for pair in generated})
        for family, style in styles(families, FAMILY_STYLES).items():
            own = [pair for pair in generated if pair.he["family"] == family]
            he, made = (
                [mean_and_deviation([100 * value for value in record["accuracy"]]) for record in records]
                for records in zip(*own, strict=True)
            )
            axes.errorbar(
                [mean for mean, _ in he],
                [mean for mean, _ in made],
                xerr=[deviation for _, deviation in he],
                yerr=[deviation for _, deviation in made],
                linestyle="none",
                color=style.colour,
                marker=style.marker,
                elinewidth=0.8,
                alpha=0.8,
                label=style.label,
            )
        low, high = (pick(*axes.get_xlim(), *axes.get_ylim()) for pick in (min, max))
        _diagonal(axes, low, high)
        axes.set_xlabel("after an epoch from He initialisation (%)")
        axes.set_ylabel("after an epoch from generated weights (%)")
        if generated:
            axes.figure.legend(loc="outside right upper")


def expected_and_measured(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw measured accuracy over expected accuracy with its interval; those not trusted are hollow."""
    with_expectation = [record for record in records if record["expected"]]
    with picture(path, (9.6, 7.2)) as (axes,):
        families = sorted({record["family"] for record in with_expectation})
        for family, style in styles(families, FAMILY_STYLES).items():
            axes.plot([], [], style.marker, color=style.colour, label=style.label)
            for trusted in (True, False):
                chosen = [r for r in with_expectation if r["family"] == family and r["trusted"] is trusted]
                expected = [100 * record["expected"]["accuracy"] for record in chosen]
                low = [100 * (r["expected"]["accuracy"] - r["expected"]["low"]) for r in chosen]
                high = [100 * (r["expected"]["high"] - r["expected"]["accuracy"]) for r in chosen]
                axes.errorbar(
                    expected,
                    [100 * record["accuracy"] for record in chosen],
                    xerr=[low, high],
                    linestyle="none",
                    color=style.colour,
                    marker=style.marker,
                    markerfacecolor=style.colour if trusted else "none",
                    elinewidth=0.8,
                    alpha=0.8,
                )
        if not all(record["trusted"] for record in with_expectation):
            axes.plot([], [], "o", color=BLACK, markerfacecolor="none", label="not trusted")
        _diagonal(axes, 0, 100)
        axes.set_xlabel("accuracy on the probe (%), 95 % interval")
        axes.set_ylabel("measured accuracy (%)")
        if with_expectation:
            axes.figure.legend(loc="outside right upper")


def diversity_tradeoff(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy over disagreement, a line a generator: all members together, and dashed the mean one."""
    with picture(path, (8, 6)) as (axes,):
        for name, style in styles(record["generator"] for record in records).items():
            own = sorted(
                (r for r in records if r["generator"] == name), key=lambda r: float(r["disagreement"])
            )
            apart = [100 * record["disagreement"] for record in own]
            for key, line in (("accuracy", "-"), ("member", "--")):
                axes.plot(
                    apart,
                    [100 * record[key] for record in own],
                    line,
                    color=style.colour,
                    marker=style.marker,
                    markerfacecolor=style.colour if key == "accuracy" else "none",
                    label=style.label if key == "accuracy" else None,
                )
        axes.set_xlabel("pairwise disagreement (%)")
        axes.set_ylabel("accuracy (%), dashed: mean member")
        axes.grid(alpha=0.3)
        axes.legend()


@contextmanager
def picture(path: str | Path, size: tuple[float, float], columns: int = 1) -> Iterator[list[Axes]]:
    """Hand out the panels of a picture, a row of them, and write it to ``path``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 17, "legend.fontsize": 13, "axes.titlesize": 17}
    look |= {"lines.linewidth": 2, "lines.markersize": 7, "errorbar.capsize": 2}
    with rc_context(look):
        figure = Figure(figsize=size, layout="constrained")
        yield [figure.add_subplot(1, columns, 1 + column) for column in range(columns)]
        figure.savefig(str(path), dpi=110)


def _diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
