"""Measure a hypernetwork, or whichever "auto" picks, over unseen networks, and what it expected of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torch_geninit.planning.choose import Pretrained
from torch_geninit.training.arguments import at_least, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate import heldout, plots
from torch_geninit.training.metrics import USEFUL
from torch_geninit.training.networks.search_space import DRAWN, WEIGHTS, weights
from torch_geninit.training.networks.specification import Specification, by_digest
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue


def measure_reference_models(
    pretrained: Pretrained, train: Split, measured: Split
) -> dict[str, dict[str, Any]]:
    """Measure the networks that people know (:data:`heldout.REFERENCE_MODELS`)."""
    found = {}
    for name, build in heldout.REFERENCE_MODELS.items():
        torch.manual_seed(0)
        found[name] = heldout.measure(build(len(train.classes)), pretrained, train, measured)
    return found


def measure_space(
    pretrained: Pretrained, train: Split, measured: Split, specs: Sequence[Specification], queue: TaskQueue
) -> list[dict[str, Any]]:
    """Measure networks of the space that ``queue`` has no record of; return the record of each there is."""

    def measure(spec: Specification) -> dict[str, Any]:
        (found,) = heldout.survey_space(pretrained, train, measured, [spec])
        return found

    return queue.complete(by_digest(specs), measure, progress="network")


def reliability(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Hold trust and expectation against what was measured.

    ``right`` is the share of networks trusted and useful, or neither; useful ones reach
    :data:`~torch_geninit.training.metrics.USEFUL`. The rest are of the trusted networks.
    """
    useful = [record["accuracy"] >= USEFUL for record in records]
    trusted = [record["trusted"] for record in records]
    judged = [record for record in records if record["trusted"] and record["expected"]]
    inside = [r["expected"]["low"] <= r["accuracy"] <= r["expected"]["high"] for r in judged]
    errors = [abs(r["expected"]["accuracy"] - r["accuracy"]) for r in judged]
    return {
        "networks": len(records),
        "right": sum(a == b for a, b in zip(useful, trusted, strict=True)) / len(records),
        "trusted": sum(trusted),
        "trusted and useful": sum(a and b for a, b in zip(useful, trusted, strict=True)),
        "not trusted but useful": sum(a and not b for a, b in zip(useful, trusted, strict=True)),
        "inside the interval": sum(inside) / len(judged) if judged else None,
        "mean absolute error": sum(errors) / len(judged) if judged else None,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--pretrained", default="auto", help="hypernetwork: a name or a file")
    parser.add_argument("--networks", type=at_least(1), default=100, help="unseen networks of the space")
    parser.add_argument("--families", nargs="+", default=list(WEIGHTS), choices=DRAWN, help="of networks")
    parser.add_argument("--most-macs", type=positive, default=heldout.MOST_MACS, help="of a network")
    parser.add_argument(
        "--reference-models", action="store_true", help="measure networks that people know, too"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--picture", type=Path, help="file for expected and measured accuracies")


def main(arguments: argparse.Namespace) -> None:
    """Measure; print a summary by family and norm, and how right trust and expectation were."""
    train, measured = load(arguments.data, "train"), load(arguments.data, arguments.split)
    if arguments.reference_models:
        for name, found in measure_reference_models(arguments.pretrained, train, measured).items():
            print(json.dumps({"network": name, **found}), flush=True)
    specs = list(
        heldout.unseen_specs(arguments.networks, weights(arguments.families), int(arguments.most_macs))
    )
    settings = {
        **fingerprint.of_measurement(arguments.pretrained, arguments.data),
        "split": arguments.split,
    }
    records = measure_space(arguments.pretrained, train, measured, specs, TaskQueue(arguments.run, settings))
    print(json.dumps({"summary": heldout.summary(records), "reliability": reliability(records)}))
    if arguments.picture:
        plots.expected_and_measured(records, arguments.picture)
