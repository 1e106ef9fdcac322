"""What trainings on other images show: mean and 95 % interval, lead over the reference paired by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch_geninit.training.evaluate.contenders import over_tokens
from torch_geninit.training.evaluate.paired_stats import Lead
from torch_geninit.training.evaluate.transfer_cases import NETWORKS

Row = dict[str, Any]


def rows(figures: Sequence[Row], reference: str) -> list[Row]:
    """Return a row for each network, set, share, epoch and initialisation, in the order of ``figures``.

    ``test`` and ``lead`` are a mean and half the width of its 95 % interval (Student's t), None for a single
    seed; the lead is over ``reference``, paired by seed, None where that has no figures. ``behind`` tells
    whether it is below 0 beyond chance (one-sided t test, 5 %).
    """
    groups: dict[tuple[Any, ...], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for figure in figures:
        place = (figure["data"], figure["share"], figure["network"], figure["epoch"])
        groups[place][figure["initialisation"]][figure["seed"]] = figure
    found = []
    for (data, share, network, epoch), contenders in groups.items():
        others = contenders.get(reference, {})
        for name, own in contenders.items():
            shared = sorted(own.keys() & others.keys())
            pairs = [[by_seed[seed]["test"] for seed in shared] for by_seed in (own, others)]
            lead = Lead.of(*pairs) if shared and name != reference else None
            values = [figure["test"] for figure in own.values()]
            found.append(
                {
                    "data": data,
                    "share": share,
                    "network": network,
                    "epoch": epoch,
                    "initialisation": name,
                    "lr": next(iter(own.values()))["lr"],
                    "seeds": len(own),
                    "test": Lead.of(values, [0.0] * len(values)).interval(),
                    "lead": lead and lead.interval(),
                    "behind": lead is not None and lead.surely_behind(),
                }
            )
    return found


def means(table: Sequence[Row]) -> list[Row]:
    """Average the leads over networks, those over tokens apart: by set, share, epoch and initialisation."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in table:
        if row["lead"] is not None:
            kind = "over tokens" if over_tokens(NETWORKS[row["network"]]) else "convolutional"
            groups[kind, row["data"], row["share"], row["epoch"], row["initialisation"]].append(row)
    return [
        {
            "networks": kind,
            "count": len(own),
            "data": data,
            "share": share,
            "epoch": epoch,
            "initialisation": name,
            "lead": statistics.mean(row["lead"][0] for row in own),
            "behind": [row["network"] for row in own if row["behind"]],
        }
        for (kind, data, share, epoch, name), own in groups.items()
    ]


def markdown(table: Sequence[Row], reference: str) -> str:
    """Return the rows and the mean leads as two tables."""
    lines = [
        "| images | share | network | epochs | initialisation | rate | seeds | test, % "
        f"| lead over {reference} |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in table:
        lead = "" if row["lead"] is None else f"{_points(row['lead'], '+')}{_flag(row['behind'])}"
        lines.append(
            f"| {row['data']} | {row['share']:g} | {row['network']} | {row['epoch']} "
            f"| {row['initialisation']} | {row['lr']:g} | {row['seeds']} | {_points(row['test'])} | {lead} |"
        )
    lines += [
        "",
        "| images | share | networks | epochs | initialisation | mean lead | significantly behind |",
        "|---|---:|---|---:|---|---:|---|",
    ]
    for mean in means(table):
        behind = ", ".join(mean["behind"]) or "none"
        lines.append(
            f"| {mean['data']} | {mean['share']:g} | {mean['count']} {mean['networks']} | {mean['epoch']} "
            f"| {mean['initialisation']} | {100 * mean['lead']:+.1f} | {behind} |"
        )
    return "\n".join(lines)


def _points(interval: tuple[float, float | None], sign: str = "") -> str:
    mean, half = interval
    return f"{100 * mean:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _flag(behind: bool) -> str:
    return ", significantly behind" if behind else ""
