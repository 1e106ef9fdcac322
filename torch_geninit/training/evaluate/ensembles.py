"""What several networks together are worth, on corrupted images too: accuracy, likelihood, calibration."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.data.kernels import zoo_networks
from torch_geninit.training.evaluate import plots
from torch_geninit.training.evaluate.memorisation import stored_networks
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.metrics import diversity, mean_and_error, of_each_subset
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import TaskQueue


def report(models: Sequence[nn.Module], test: Split, *, size: int, images: int) -> dict[str, Any]:
    """Measure networks alone and in all ensembles of ``size``.

    ``alone`` and ``together`` hold pairs of mean and standard error (:func:`mean_and_error`): ``clean`` on
    all of ``test``; ``corrupted`` over every corruption and severity, each on ``images`` evenly spaced images
    of it; ``by severity`` the same for each.
    """
    from tqdm.auto import tqdm

    clean = [logits_of(model, test) for model in models]
    few = test.spread(images)
    harmed: dict[int, list[list[Tensor]]] = {severity: [] for severity in SEVERITIES}
    for name in tqdm(CORRUPTIONS, unit="corruption"):
        for severity in SEVERITIES:
            kind = corrupted(few, name, severity)
            harmed[severity].append([logits_of(model, kind) for model in models])

    def summed_up(members: int) -> dict[str, Any]:
        def over(conditions: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
            return {
                key: mean_and_error(
                    [statistics.mean(row) for row in zip(*(c[key] for c in conditions), strict=True)],
                    len(models),
                    members,
                )
                for key in conditions[0]
            }

        by_severity = {
            severity: [of_each_subset(logits, few.labels, members) for logits in conditions]
            for severity, conditions in harmed.items()
        }
        return {
            "clean": over([of_each_subset(clean, test.labels, members)]),
            "corrupted": over(list(chain.from_iterable(by_severity.values()))),
            "by severity": {severity: over(conditions) for severity, conditions in by_severity.items()},
        }

    return {
        "networks": len(models),
        "alone": summed_up(1),
        "together": summed_up(size),
        **diversity(clean),
    }


def labels_of(zoos: Sequence[str]) -> dict[str, str]:
    """Return short label -> zoo: the parts of the paths that tell them apart."""
    parts = [Path(zoo).resolve().parts for zoo in zoos]
    if len(zoos) > 1:
        while all(len(own) > 1 and own[0] == parts[0][0] for own in parts):
            parts = [own[1:] for own in parts]
        while all(len(own) > 1 and own[-1] == parts[0][-1] for own in parts):
            parts = [own[:-1] for own in parts]
    else:
        parts = [own[-1:] for own in parts]
    return {"/".join(own): zoo for own, zoo in zip(parts, zoos, strict=True)}


def measure(
    zoos: Mapping[str, str], test: Split, folder: str | Path, *, size: int, images: int, data: str = ""
) -> list[dict[str, Any]]:
    """Report on every zoo; several processes share the work, and what is in ``folder`` is not measured again.

    Args:
        zoos: label -> folder of ResNet-20s.
        test: images to measure on.
        folder: of the records, one for each set of networks, whatever their folder is called.
        size, images: as in :func:`report`.
        data: identifies the images.

    Raises:
        ValueError: if a zoo is too small, or ``folder`` holds records of other images or sizes.
    """
    networks = {}
    for label, zoo in zoos.items():
        names = zoo_networks(zoo)
        if len(names) < size:
            raise ValueError(
                f"{zoo} holds {len(names)} networks; expected at least --size {size}: a zoo, or the folder "
                "of one rate of training initialisations"
            )
        networks[label] = fingerprint.of_files(Path(zoo) / f"{name}.safetensors" for name in names)

    def measured(zoo: str) -> dict[str, Any]:
        return report(stored_networks(zoo, len(test.classes)), test, size=size, images=images)

    queue = TaskQueue(folder, {"data": data, "size": size, "images": images})
    tasks = {networks[label]: zoo for label, zoo in zoos.items()}
    found = dict(zip(tasks, queue.complete(tasks, measured), strict=True))
    return [{"zoo": label, **found[networks[label]]} for label in zoos]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--zoos", nargs="+", required=True, help="folders of ResNet-20s, compared in turn")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--size", type=at_least(1), default=5, help="networks of an ensemble")
    parser.add_argument("--images", type=at_least(1), default=2000, help="for each corruption and severity")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="images to measure on"
    )
    parser.add_argument("--picture", type=Path, help="file for ensembles over severities")


def main(arguments: argparse.Namespace) -> None:
    found = measure(
        labels_of(arguments.zoos),
        load(arguments.data, arguments.split),
        arguments.run,
        size=arguments.size,
        images=arguments.images,
        data=f"{fingerprint.of_file(arguments.data)}/{arguments.split}",
    )
    for one in found:
        print(json.dumps(one), flush=True)
    if arguments.picture:
        plots.ensembles(found, arguments.picture)
