"""Pictures of a report: the styles of :mod:`torch_geninit.training.evaluate.plots`, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_geninit.training.evaluate.paired_stats import Lead
from torch_geninit.training.evaluate.plots import BLACK, BLUE, ORANGE, picture, styles
from torch_geninit.training.report.paper.found import Found, interval
from torch_geninit.training.report.paper.initialisations import label
from torch_geninit.training.report.paper.layers import NO_LAYER

MEASURES = {
    "accuracy": ("accuracy (%)", 100),
    "nll": ("NLL (nats)", 1),
    "brier": ("Brier score", 1),
    "ece15": ("ECE, 15 bins (%)", 100),
    "ece10": ("ECE, 10 bins (%)", 100),
}
"""Key of a record -> title, and factor on the value."""


def epochs(found: Found, path: Path) -> None:
    """Draw validation accuracy by epoch: means, and 95 % intervals over seeds."""
    from matplotlib.ticker import MaxNLocator

    with picture(path, (9, 6.5)) as (axes,):
        for name, style in styles(found.rows).items():
            row = found.rows[name]
            count = len(next(iter(row.results.values()))["validation"])
            points = [interval(row.values("validation", epoch)) for epoch in range(count)]
            means = [100 * mean for mean, _ in points]
            halves = [100 * (half or 0) for _, half in points]
            axes.plot(range(count), means, color=style.colour, marker=style.marker, label=style.label)
            low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
            axes.fill_between(range(count), low, high, color=style.colour, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)  # intervals of few seeds reach below
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.figure.legend(loc="outside right upper")


def severities(measure: str, found: Found, path: Path) -> None:
    """Draw one measure of the largest ensembles over severity: as they are, and dashed after scaling."""
    title, factor = MEASURES[measure]
    by_name = {one["settings"]["initialisation"]: one["result"]["sizes"] for one in found.ensembles}
    with picture(path, (9, 6)) as (axes,):
        for name, style in styles(by_name).items():
            size = max(by_name[name], key=int)
            conditions = by_name[name][size]
            order = sorted(conditions, key=int)
            for suffix, line in (("", "-"), (" scaled", "--")):
                axes.plot(
                    [int(severity) for severity in order],
                    [factor * conditions[severity][measure + suffix] for severity in order],
                    line,
                    color=style.colour,
                    marker=style.marker,
                    markerfacecolor="none" if suffix else style.colour,
                    label=None if suffix else f"{style.label}, {size} networks",
                )
        axes.set_xlabel("severity, 0: clean")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.figure.legend(loc="outside right upper")


def pairs(measure: str, found: Found, path: Path) -> None:
    """Draw a heat map of all pairs of members for each initialisation, on one scale."""
    tables = {one["settings"]["initialisation"]: one["result"][measure] for one in found.ensembles}
    apart = [v for t in tables.values() for i, row in enumerate(t) for j, v in enumerate(row) if i != j]
    with picture(path, (4.6 * len(tables), 4.8), columns=len(tables)) as panels:
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            image = axes.imshow(table, cmap="cividis", vmin=min(apart), vmax=max(apart))
            axes.set_title(styles([name])[name].label)
            axes.set_xlabel("member")
            axes.set_xticks(range(len(table)))
            axes.set_yticks(range(len(table)))
        panels[0].figure.colorbar(image, ax=panels, label=measure, shrink=0.8)


def amplitudes(found: Found, path: Path) -> None:
    """Draw accuracy and disagreement over the noise's amplitude, before and after training."""
    scales = [one["settings"]["scale"] for one in found.noise]
    with picture(path, (13, 5.2), columns=2) as (accuracy, differences):
        for moment, colour, marker in (("before", ORANGE, "s"), ("after", BLUE, "o")):
            rows = [one["result"][moment] for one in found.noise]
            for key, line in (("member", "--"), ("together", "-")):
                accuracy.plot(
                    scales,
                    [100 * row[key] for row in rows],
                    line,
                    color=colour,
                    marker=marker,
                    label=f"{moment} training, {'mean member' if key == 'member' else 'all together'}",
                )
            differences.plot(
                scales,
                [100 * row["disagreement"] for row in rows],
                color=colour,
                marker=marker,
                label=f"{moment} training",
            )
        accuracy.set_ylabel("test accuracy (%)")
        differences.set_ylabel("pairwise disagreement (%)")
        for axes in (accuracy, differences):
            axes.set_xlabel("noise amplitude")
            axes.grid(alpha=0.3)
            axes.legend()


def layers(found: Found, path: Path) -> None:
    """Draw the lead over He after an epoch, one layer generated, over that layer's reconstruction error."""
    with picture(path, (8, 6)) as (axes,):
        points = layer_leads(found.layers)
        known = [(error, lead, half) for _, error, lead, half in points if error is not None]
        axes.errorbar(
            [error for error, _, _ in known],
            [100 * lead for _, lead, _ in known],
            [100 * (half or 0) for _, _, half in known],
            linestyle="none",
            color=BLUE,
            marker="o",
        )
        axes.axhline(0, color=BLACK, linewidth=1)
        axes.set_xlabel("reconstruction error of the layer's VAE")
        axes.set_ylabel(f"lead over {label('he')} after an epoch (points)")
        axes.grid(alpha=0.3)


def layer_leads(
    records: Sequence[dict[str, Any]],
) -> list[tuple[str, float | None, float, float | None]]:
    """Return layer, reconstruction error, and lead over He with half its 95 % interval, by error."""
    by_layer = {one["settings"]["layer"]: one["result"] for one in records}
    if NO_LAYER not in by_layer:
        return []
    he = by_layer[NO_LAYER]["validation"]
    found = [
        (layer, result["reconstruction"], *Lead.of(result["validation"], he).interval())
        for layer, result in by_layer.items()
        if layer != NO_LAYER and len(result["validation"]) == len(he)
    ]
    return sorted(found, key=lambda one: (one[1] is None, one[1] or 0.0, one[0]))
