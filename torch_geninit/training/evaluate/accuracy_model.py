"""Measure networks with predicted weights, and fit what tells the accuracy of others from their graphs."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.request import Expectation
from torch_geninit.generators.trust.accuracy import NUMBERS, MeasuredNetworks, describe
from torch_geninit.training.arguments import at_least, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate import heldout
from torch_geninit.training.networks.families import REFERENCE_BLOCKS, Spec
from torch_geninit.training.networks.search_space import (
    DRAWN,
    WEIGHTS,
    Space,
    classical,
    sample_unseen,
    weights,
)
from torch_geninit.training.networks.specification import Specification, by_digest
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue

LENGTHS = tuple(2.0**k for k in range(-1, 7))
NOISES = tuple(4.0**k for k in range(-6, 1))
"""Candidates for the length of the covariance, and for noise^2 / signal^2."""

COVERED = 0.9

LEAST = 0.15
"""Lower end of the expected accuracy from which a network is trusted: one and a half times chance of ten."""

LEAST_DEVIATION = torch.tensor([0.02, 0.02, *[0.2] * (NUMBERS - 2)], dtype=torch.float64)
"""What hardly varies among measured networks must not set others far apart, but for the first two numbers:
whatever is outside of the training networks is none of them."""

SPACE = 100
"""Unseen networks of all families that nothing may be fitted to."""


def specs_to_fit(
    count: int, judged_by: int = 100, families: Mapping[str, float] = WEIGHTS
) -> Iterator[Specification]:
    """Yield ``count`` networks that are neither trained on nor among those the result is judged by.

    These are the first ``judged_by`` networks of :func:`heldout.unseen_specs` of these families and the first
    :data:`SPACE` of all, by which the choice among generators is judged.
    """
    space = Space(10, torch.zeros(1, 3, 32, 32))
    seen = {*heldout.unseen_specs(judged_by, families), *heldout.unseen_specs(SPACE)}
    number = 0
    while count:
        seed = f"reference/{number}"
        drawn = space.within(lambda r: sample_unseen(r, families), seed, heldout.MOST_MACS).spec
        number += 1
        if drawn not in seen:
            seen.add(drawn)
            count -= 1
            yield drawn


def resnet_specs(count: int) -> Iterator[Spec]:
    """Yield ``count`` different ResNets as of He et al. 2016, section 4.2, none of depth 20 or 56.

    They are usual, and rare among random networks.
    """
    seen: set[Spec] = set()
    number = 0
    while len(seen) < count:
        spec = classical(random.Random(f"resnet/{number}"))
        number += 1
        if spec.blocks not in REFERENCE_BLOCKS and spec not in seen:
            seen.add(spec)
            yield spec


def name_of(spec: Specification) -> str:
    """Name a network for people: family, blocks, widths, norm; or whatever else its specification says."""
    if not isinstance(spec, Spec):
        return repr(spec)
    blocks, widths = ("-".join(map(str, sizes)) for sizes in (spec.blocks, spec.widths))
    norm = "no" if spec.style.norm == "none" else spec.style.norm
    return f"{spec.family} {blocks}, widths {widths}, {norm} norm"


def measure_networks(
    pretrained: WeightGenerator,
    train: Split,
    measured: Split,
    specs: Sequence[Specification],
    queue: TaskQueue,
) -> list[dict[str, Any]]:
    """Measure networks that ``queue`` has no record of without a training step; return the record of each.

    Each record has the network's name, description, and what :func:`heldout.measure` tells.
    """
    example = train.normalise(train.images[:1])

    def measure(spec: Specification) -> dict[str, Any]:
        (found,) = heldout.survey_space(pretrained, train, measured, [spec])
        with torch.device("meta"):
            model = spec.build(len(train.classes), train.images.shape[-1])
        graph = pretrained.trace(model, example.to("meta"))
        point = describe(graph, found["distance"], 1 - found["generated"], len(train.classes))
        return {"network": name_of(spec), "point": [round(x, 4) for x in point.tolist()], **found}

    return queue.complete(by_digest(specs), measure, progress="network")


def fit(records: Sequence[dict[str, Any]], classes: int, images: str, least: float = LEAST) -> dict[str, Any]:
    """Return the entry ``measured`` of a config: the process whose leave-one-out predictions are likeliest.

    For each length and ratio of noise to signal the signal is the one that makes the squared
    leave-one-out errors equal to their variances on average.
    """
    points = torch.tensor([record["point"] for record in records], dtype=torch.float64)
    accuracy = torch.tensor([record["accuracy"] for record in records], dtype=torch.float64)
    deviation = points.std(0).maximum(LEAST_DEVIATION)
    record: dict[str, Any] = {
        "networks": [one["network"] for one in records],
        "points": points.tolist(),
        "accuracy": [round(value, 4) for value in accuracy.tolist()],
        "spread": [round(value, 4) for value in deviation.tolist()],
        "chance": 1 / classes,
        "quantile": 1.0,
        "images": images,
        "least": least,
    }
    best = -math.inf
    for length, ratio in product(LENGTHS, NOISES):
        trial = record | {"length": length, "signal": 1.0, "noise": math.sqrt(ratio)}
        errors, variances = leave_one_out(MeasuredNetworks(trial))
        signal = float((errors**2 / variances).mean().sqrt())
        variances = variances * signal**2
        likelihood = -float((errors**2 / variances + variances.log()).sum())
        if likelihood > best:
            best = likelihood
            quantile = (errors.abs() / variances.sqrt()).quantile(COVERED)
            chosen = {"signal": signal, "noise": signal * math.sqrt(ratio), "quantile": float(quantile)}
            record |= {"length": length, **{name: round(value, 6) for name, value in chosen.items()}}
    return record


def leave_one_out(networks: MeasuredNetworks) -> tuple[Tensor, Tensor]:
    """Return error and variance of every network, predicted from all others (ibid., section 5.4.2)."""
    inverse = torch.linalg.inv(networks.covariance())
    return (inverse @ networks.lead) / inverse.diagonal(), 1 / inverse.diagonal()


def calibration(
    records: Sequence[dict[str, Any]], measured: MeasuredNetworks, threshold: float
) -> dict[str, Any]:
    """Hold expectations against networks that ``measured`` doesn't contain.

    ``threshold`` is the distance from which a network is outside of those of training.
    """

    def expected(record: dict[str, Any]) -> Expectation:
        inside = measured(torch.tensor(record["point"], dtype=torch.float64))
        outside = record["distance"] > threshold or record["generated"] < 1
        return measured.at_most(inside) if outside else inside

    expectations = [expected(record) for record in records]
    truth = [record["accuracy"] for record in records]
    errors = [one.accuracy - value for one, value in zip(expectations, truth, strict=True)]
    inside = [one.low <= value <= one.high for one, value in zip(expectations, truth, strict=True)]
    both = torch.tensor([[one.accuracy for one in expectations], truth], dtype=torch.float64)
    correlation = float(torch.corrcoef(both)[0, 1])
    return {
        "networks": len(records),
        "mean_error": sum(errors) / len(errors),
        "mean_absolute_error": sum(map(abs, errors)) / len(errors),
        "standard_deviation_of_accuracy": float(both[1].std()),
        # None where all that was expected, or measured, is equal.
        "correlation": None if math.isnan(correlation) else correlation,
        "inside_interval": sum(inside) / len(inside),
        "mean_width": sum(one.high - one.low for one in expectations) / len(expectations),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--pretrained", required=True, help="hypernetwork: a manifest name or a file")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--networks", type=at_least(2), default=200, help="networks to learn from")
    parser.add_argument("--resnets", type=at_least(0), default=0, help="ResNets to learn from besides")
    parser.add_argument("--judged-by", type=at_least(2), default=100, help="others to hold it against")
    parser.add_argument("--families", nargs="+", default=list(WEIGHTS), choices=DRAWN, help="of both")
    parser.add_argument("--images", type=at_least(1), default=5000, help="validation images to measure on")
    parser.add_argument("--on", default="CIFAR-10", help="name of the images, for people")
    parser.add_argument(
        "--least", type=positive, default=LEAST, help="lower end of the expected accuracy to trust from"
    )


def main(arguments: argparse.Namespace) -> None:
    """Measure both sets of networks; write measured.json for the export, and calibration.json."""
    folder = Path(arguments.run)
    generator = geninit.load(arguments.pretrained)
    train = load(arguments.data, "train")
    validation = load(arguments.data, "validation").spread(arguments.images)
    families = weights(arguments.families)
    judges = list(heldout.unseen_specs(arguments.judged_by, families))
    random_ones = specs_to_fit(arguments.networks, arguments.judged_by, families)
    resnets = (spec for spec in resnet_specs(arguments.resnets) if spec not in judges)
    sets = {"references": [*random_ones, *resnets], "judges": judges}
    settings = {
        **fingerprint.of_measurement(arguments.pretrained, arguments.data),
        "images": len(validation),
    }
    records = {
        name: measure_networks(generator, train, validation, specs, TaskQueue(folder / name, settings))
        for name, specs in sets.items()
    }
    record = fit(records["references"], len(train.classes), arguments.on, arguments.least)
    of = {"weights": fingerprint.of_weights(generator), "data": settings["data"]}
    (folder / "measured.json").write_text(json.dumps({"of": of, **record}) + "\n")
    judged = calibration(
        records["judges"], MeasuredNetworks(record), generator.config["trained"]["threshold"]
    )
    (folder / "calibration.json").write_text(json.dumps(judged, indent=1) + "\n")
    print(json.dumps(judged))
