"""Train unseen networks for one epoch, He initialised and generated, each at its best rate."""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training.arguments import at_least, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate import plots
from torch_geninit.training.evaluate.heldout import (
    CALIBRATION_IMAGES,
    MOST_MACS,
    name_of,
    norm_of,
    unseen_specs,
)
from torch_geninit.training.evaluate.initialise import fill_, planned
from torch_geninit.training.evaluate.paired_stats import Pair, best_rate
from torch_geninit.training.loops.classifier import Phase, Recipe, diverged, score, train_classifier
from torch_geninit.training.networks.resnet import he_
from torch_geninit.training.networks.search_space import DRAWN, WEIGHTS, weights
from torch_geninit.training.networks.specification import Specification, by_digest
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue

HE = "he"
"""The initialisation that needs no generator."""


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


def measure(
    spec: Specification,
    initialisation: str | WeightGenerator,
    train: Split,
    validation: Split,
    *,
    rates: Sequence[float],
    seeds: int,
    amp: bool = False,
) -> dict[str, Any]:
    """Return accuracies after an epoch of one network from :data:`HE` or a generator.

    The rate is the one of ``rates`` that is best with the first seed; the seed decides the order of the
    images and what is drawn, so initialisations are paired by it. Where nothing is generated, there are no
    accuracies: they would be those of :data:`HE`.
    """
    size, classes = train.images.shape[-1], len(train.classes)
    image = train.normalise(train.images[:1])
    record: dict[str, Any] = {"network": name_of(spec), "family": spec.family, "norm": norm_of(spec)}

    def trained(lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = he_(spec.build(classes, size))
        if initialisation != HE:
            fill_(model, initialisation, seed, example_inputs=image)
        return accuracy_after_an_epoch(model, lr, seed, train, validation, amp=amp)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        if initialisation != HE:
            made = planned(spec.build(classes, size), initialisation, image)
            record["generator"] = made.source
            if not made.generated:
                return record
        first = {lr: trained(lr, 0) for lr in rates}
        best = best_rate(first)
        others = [trained(best, seed) for seed in range(1, seeds)]
    return {**record, "lr": best, "accuracy": [first[best], *others], "first seed": first}


def summary(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Count networks generated, ahead of He, and significantly worse (one-sided t test, 5 %).

    Over ``"all"`` and by family.
    """
    groups: dict[str, list[Pair]] = {"all": list(pairs)}
    for pair in sorted(pairs, key=lambda pair: str(pair.he["family"])):
        groups.setdefault(pair.he["family"], []).append(pair)
    return {group: _counted(own) for group, own in groups.items()}


def _counted(pairs: Sequence[Pair]) -> dict[str, Any]:
    # Names are for people; two networks may have one.
    leads = [(pair.he["network"], found) for pair in pairs if (found := pair.lead()) is not None]
    means = [found.mean for _, found in leads]
    return {
        "networks": len(pairs),
        "generated": len(leads),
        "ahead": sum(mean > 0 for mean in means),
        "mean_lead": statistics.mean(means) if means else 0.0,
        "significantly_worse": [name for name, found in leads if found.surely_behind()],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--pretrained", default="auto", help="generator: a name or a file")
    parser.add_argument(
        "--run",
        required=True,
        help="folder of the records; processes may share it, generators the part of He",
    )
    parser.add_argument("--networks", type=at_least(1), default=40, help="unseen networks of the space")
    parser.add_argument("--families", nargs="+", default=list(WEIGHTS), choices=DRAWN)
    parser.add_argument("--most-macs", type=positive, default=MOST_MACS, help="multiplications of a network")
    parser.add_argument("--rates", type=positive, nargs="+", default=[0.01, 0.03, 0.1], help="grid of both")
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--picture", type=Path, help="file for the accuracies from both initialisations")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Measure every network from both initialisations; print a line each, and the summary.

    Records of He initialisation are in ``<run>/he`` and serve every generator, those of a generator in a
    folder of its name.
    """
    train, validation = load(arguments.data, "train"), load(arguments.data, "validation")
    families = weights(arguments.families)
    protocol: dict[str, Any] = {"rates": arguments.rates, "seeds": arguments.seeds, "amp": arguments.amp}
    specs = by_digest(unseen_specs(arguments.networks, families, int(arguments.most_macs)))

    def measured(initialisation: str) -> Callable[[Specification], dict[str, Any]]:
        return lambda spec: measure(spec, initialisation, train, validation, **protocol)

    folder = Path(arguments.pretrained).name.removesuffix(".safetensors")
    if folder == HE:
        raise ValueError(
            f"--pretrained {arguments.pretrained}: {HE} is the folder of He initialisation; rename it"
        )
    settings = {"data": fingerprint.of_file(arguments.data), **protocol}
    content = {"generator": fingerprint.of_generator(arguments.pretrained), **settings}
    queues = {
        HE: TaskQueue(Path(arguments.run) / HE, settings),
        arguments.pretrained: TaskQueue(Path(arguments.run) / folder, content),
    }
    for digest, spec in specs.items():  # network by network, so that there are pairs at any time
        for name, queue in queues.items():
            queue.begin({digest: spec}, measured(name))
        for both in zip(*(queue.of([digest]) for queue in queues.values()), strict=False):
            print(json.dumps(Pair(*both)._asdict()), flush=True)
    found = [queue.complete(specs, measured(name)) for name, queue in queues.items()]
    pairs = [Pair(*both) for both in zip(*found, strict=True)]
    print(json.dumps(summary(pairs)))
    if arguments.picture:
        plots.first_epoch(pairs, arguments.picture)
