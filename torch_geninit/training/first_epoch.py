"""Train unseen networks for one epoch from He's law and from generated weights, each at its best rate."""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training import identity
from torch_geninit.training.architectures import WEIGHTS
from torch_geninit.training.arguments import at_least, positive
from torch_geninit.training.classifier import Phase, Recipe, diverged, score, train_classifier
from torch_geninit.training.data import Split, load
from torch_geninit.training.expectation import name_of
from torch_geninit.training.families import Spec, by_digest
from torch_geninit.training.networks import he_
from torch_geninit.training.pairs import Lead, best_rate, mean_and_deviation
from torch_geninit.training.records import Records
from torch_geninit.training.unseen import CALIBRATION_IMAGES, MOST_MACS, unseen_specs
from torch_geninit.training.verbs import fill_, planned


def accuracy_after_an_epoch(
    model: nn.Module, lr: float, seed: int, train: Split, validation: Split, *, amp: bool = False
) -> float:
    """Train ``model`` for one epoch of SGD, the rate rising over the first fifth, and measure it.

    Where training diverges the accuracy is chance.
    """
    recipe = Recipe([Phase(train.images.shape[-1], 1)], lr=lr, weight_decay=1e-4, amp=amp)
    train_classifier(model, train, recipe, seed=seed, description=f"lr {lr}")
    if diverged(model):
        return 1 / len(train.classes)
    geninit.recalibrate_bn_(model, train.spread(CALIBRATION_IMAGES).batches())
    return score(model, validation).accuracy


def compare(
    spec: Spec,
    pretrained: str | WeightGenerator,
    train: Split,
    validation: Split,
    *,
    rates: Sequence[float],
    seeds: int,
    amp: bool = False,
) -> dict[str, Any]:
    """Return accuracies after an epoch of one network from both starts.

    Each start's rate is the one of ``rates`` that is best with the first seed; the seed decides the order of
    the images, He's draw and the generator's, and is shared by the two. Where nothing is generated, there is
    only He.
    """
    size, classes = train.images.shape[-1], len(train.classes)
    image = train.normalise(train.images[:1])
    record: dict[str, Any] = {"network": name_of(spec), "family": spec.family, "norm": spec.style.norm}

    def built(start: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = he_(spec.build(classes, size))
        return model if start == "he" else fill_(model, pretrained, seed, example_inputs=image)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        made = planned(built("he", 0), pretrained, image)
        record["generator"] = made.source
        for start in ("he", "generated") if made.generated else ("he",):
            first = {
                lr: accuracy_after_an_epoch(built(start, 0), lr, 0, train, validation, amp=amp)
                for lr in rates
            }
            best = best_rate(first)
            others = [
                accuracy_after_an_epoch(built(start, seed), best, seed, train, validation, amp=amp)
                for seed in range(1, seeds)
            ]
            record[start] = {"lr": best, "accuracy": [first[best], *others], "first seed": first}
    return record


def lead(record: dict[str, Any]) -> Lead | None:
    """Return the lead over He of one network; None where nothing was generated."""
    if "generated" not in record:
        return None
    return Lead.of(record["generated"]["accuracy"], record["he"]["accuracy"])


def summary(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count networks generated, ahead of He, and significantly worse (one-sided t test, 5 %).

    Over ``"all"`` and by family.
    """
    groups: dict[str, list[dict[str, Any]]] = {"all": list(records)}
    for record in sorted(records, key=lambda record: str(record["family"])):
        groups.setdefault(record["family"], []).append(record)
    return {group: _counted(own) for group, own in groups.items()}


def _counted(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # Names are for people; two networks may have one.
    leads = [(record["network"], found) for record in records if (found := lead(record)) is not None]
    means = [found.mean for _, found in leads]
    return {
        "networks": len(records),
        "generated": len(leads),
        "ahead": sum(mean > 0 for mean in means),
        "mean_lead": statistics.mean(means) if means else 0.0,
        "significantly_worse": [name for name, found in leads if found.surely_behind()],
    }


def draw(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw accuracy from generated weights over accuracy from He's law: mean and deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    generated = [record for record in records if "generated" in record]
    for index, family in enumerate(sorted({record["family"] for record in generated})):
        own = [record for record in generated if record["family"] == family]
        he, made = (
            [mean_and_deviation([100 * value for value in record[start]["accuracy"]]) for record in own]
            for start in ("he", "generated")
        )
        axes.errorbar(
            [mean for mean, _ in he],
            [mean for mean, _ in made],
            xerr=[deviation for _, deviation in he],
            yerr=[deviation for _, deviation in made],
            fmt="o",
            color=f"C{index}",
            elinewidth=0.6,
            alpha=0.8,
            label=family,
        )
    low, high = (pick(*axes.get_xlim(), *axes.get_ylim()) for pick in (min, max))
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("accuracy after an epoch from He's law (%)")
    axes.set_ylabel("accuracy after an epoch from generated weights (%)")
    if generated:
        axes.legend(fontsize="small")
    figure.savefig(str(path), dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--pretrained", default="auto", help="generator: a name or a file")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--networks", type=at_least(1), default=40, help="unseen networks of the space")
    parser.add_argument("--families", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--most-macs", type=positive, default=MOST_MACS, help="multiplications of a network")
    parser.add_argument("--rates", type=positive, nargs="+", default=[0.01, 0.03, 0.1], help="grid of both")
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--picture", type=Path, help="file for the accuracies from both starts")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Compare network by network, a line each as it goes; print the summary of all there are."""
    train, validation = load(arguments.data, "train"), load(arguments.data, "validation")
    families = {name: WEIGHTS[name] for name in arguments.families}
    protocol: dict[str, Any] = {"rates": arguments.rates, "seeds": arguments.seeds, "amp": arguments.amp}
    specs = by_digest(unseen_specs(arguments.networks, families, int(arguments.most_macs)))

    def compared(spec: Spec) -> dict[str, Any]:
        return compare(spec, arguments.pretrained, train, validation, **protocol)

    content = identity.of_measurement(arguments.pretrained, arguments.data)
    # Who fills a network is part of the settings: a noise GHN was once used without its noise.
    records = Records(arguments.run, {**content, **protocol, "starts": ["he", "generated"]})
    for record in records.fill(specs, compared):
        print(json.dumps(record), flush=True)
    found = records.of(specs)
    print(json.dumps(summary(found)))
    if arguments.picture:
        draw(found, arguments.picture)
