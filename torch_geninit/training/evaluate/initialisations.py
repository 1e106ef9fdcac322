"""Train ResNet-20, or one of other depth, from several initialisations, each at its best rate."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.planning.options import Head
from torch_geninit.training.arguments import at_least, finite, positive, share
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate import plots
from torch_geninit.training.evaluate.initialise import fill_
from torch_geninit.training.evaluate.paired_stats import Lead, best_rate, mean_and_deviation
from torch_geninit.training.evaluate.rate_search import Search, search_rates
from torch_geninit.training.loops.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.networks.resnet import ResNet, he_, xavier_
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.state_dicts import load_, save
from torch_geninit.training.runs.task_queue import TaskQueue

WITHOUT_GENERATOR = {"he": he_, "xavier": xavier_}
"""Initialisations that need no generator."""


def initialised(
    initialisation: str,
    seed: int,
    classes: int,
    head: Head = "auto",
    blocks: Sequence[int] = (3, 3, 3),
    noise_scale: float = 1.0,
) -> nn.Module:
    """Build a ResNet from one of :data:`WITHOUT_GENERATOR`, a generator's name or its file.

    What a generator leaves alone has He initialisation. It is drawn with ``seed``, as the weights of a noise
    GHN and of VAEs are; a plain GHN has but one result.

    Raises:
        StrictError: if the generator does not fill the network: it would be He initialised under that name.
    """
    torch.manual_seed(seed)
    model = ResNet(blocks, num_classes=classes)
    if initialisation in WITHOUT_GENERATOR:
        return WITHOUT_GENERATOR[initialisation](model)
    he_(model)
    return fill_(model, initialisation, seed, head=head, noise_scale=noise_scale, strict=True)


@dataclass(frozen=True)
class Course:
    """What all trainings of a comparison have in common.

    Attributes:
        epochs: of SGD with Nesterov momentum, the rate rising over the first fifth, then falling to 0.
        blocks: of each stage, see :class:`ResNet`.
        head: what a GHN does with the classifier.
        calibrate: images that BatchNorm is calibrated on before the first measurement.
        noise_scale: of noise GHNs; what goes by the parity of the seed is there at any scale but 0.
    """

    epochs: int
    blocks: Sequence[int] = (3, 3, 3)
    weight_decay: float = 5e-4
    batch_size: int = 128
    head: Head = "auto"
    amp: bool = False
    calibrate: int = 2000
    noise_scale: float = 1.0


def train_from(
    initialisation: str,
    lr: float,
    seed: int,
    course: Course,
    train: Split,
    validation: Split,
    folder: Path,
) -> dict[str, Any]:
    """Train one network; keep its weights in ``folder``, ``<seed>.safetensors``, and return its record.

    An interrupted training goes on. ``validation`` has the accuracy before training and after every epoch.
    The seed decides what is drawn and the order of the images.
    """
    model = initialised(
        initialisation, seed, len(train.classes), course.head, course.blocks, course.noise_scale
    )
    geninit.recalibrate_bn_(model, (x for x, _ in train.spread(course.calibrate).batches()))
    before = score(model, validation).accuracy
    run = Run(folder / f"run-{seed}")
    recipe = Recipe(
        [Phase(train.images.shape[-1], course.epochs)],
        lr=lr,
        weight_decay=course.weight_decay,
        batch_size=course.batch_size,
        amp=course.amp,
    )

    def measure(_: int, metrics: dict[str, Any]) -> None:
        metrics["validation"] = score(model, validation).accuracy

    train_classifier(
        model,
        train,
        recipe,
        seed=seed,
        run=run,
        after_epoch=measure,
        description=f"{folder.parent.name} lr {lr:g} seed {seed}",
    )
    epochs = [json.loads(line)["validation"] for line in run.metrics.read_text().splitlines()]
    save(model, folder / f"{seed}.safetensors")
    run.checkpoint.unlink()
    return {
        "initialisation": initialisation,
        "lr": lr,
        "seed": seed,
        "validation": [before, *epochs],
        "seconds": round(run.seconds),
    }


def compare(
    initialisations: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    course: Course,
    splits: tuple[Split, Split, Split],
    folder: Path,
    data: str = "",
) -> Iterator[dict[str, Any]]:
    """Train from each: all rates with the first seed, the others at the best rate; yield the records.

    ``splits`` are for training, for the choice of the rate and, at that rate alone, for the test. Networks
    and records are in ``<folder>/<initialisation>/lr<rate>``, a zoo of one rate. What is there is not trained
    again, and several processes share the work. ``data`` identifies the images.

    Raises:
        ValueError: if two have one name, or what is there is of another course, generator or data.
    """
    names = {Path(each).name.removesuffix(".safetensors"): each for each in initialisations}
    if len(names) < len(initialisations):
        raise ValueError(
            f"initialisations {', '.join(initialisations)}: expected different names, of files without folder"
        )
    train, validation, test = splits

    def queue_of(name: str) -> TaskQueue:
        chosen = names[name]
        content = chosen if chosen in WITHOUT_GENERATOR else fingerprint.of_generator(chosen)
        settings = {"initialisation": content, "data": data, "images": len(train), "course": asdict(course)}
        return TaskQueue(folder / name, settings)

    def trained_from(name: str) -> Callable[[tuple[float, int]], dict[str, Any]]:
        def trained(task: tuple[float, int]) -> dict[str, Any]:
            lr, seed = task
            return train_from(names[name], lr, seed, course, train, validation, folder / name / f"lr{lr:g}")

        return trained

    def chosen(rated: Sequence[dict[str, Any]]) -> list[float]:
        return [best_rate({record["lr"]: record["validation"][-1] for record in rated})]

    searches = {name: Search(queue_of(name), rates, trained_from(name), chosen) for name in names}
    search_rates(list(searches.values()), seeds)
    for name, search in searches.items():
        for key, record in search.complete().items():
            record["initialisation"] = names[name]  # the same file may have been named otherwise
            if record["lr"] in search.chosen and "test" not in record:
                model = ResNet(course.blocks, num_classes=len(test.classes))
                load_(model, folder / name / f"{key}.safetensors")
                record["test"] = score(model, test).accuracy
                search.queue.amend(key, record)
            yield record


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each initialisation's rate, accuracies by epoch, and lead over the first one, paired by seed.

    ``lead`` is by epoch, ``test_lead`` at the end: mean and half width of the 95 % interval (Student's t),
    None for a single seed.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in dict.fromkeys(record["initialisation"] for record in records):
        trained = [record for record in records if record["initialisation"] == name]
        first = {r["lr"]: r["validation"][-1] for r in trained if r["seed"] == trained[0]["seed"]}
        best = best_rate(first)
        found[name] = {record["seed"]: record for record in trained if record["lr"] == best}
    reference = next(iter(found.values()))
    result = {}
    for name, own in found.items():
        shared = sorted(own.keys() & reference.keys())
        mine, others = ([by_seed[seed] for seed in shared] for by_seed in (own, reference))
        epochs = zip(*(r["validation"] for r in mine), strict=True)
        other_epochs = zip(*(r["validation"] for r in others), strict=True)
        result[name] = {
            "lr": next(iter(own.values()))["lr"],
            "seeds": sorted(own),
            "validation": [
                mean_and_deviation(v) for v in zip(*(r["validation"] for r in own.values()), strict=True)
            ],
            "test": mean_and_deviation([record["test"] for record in own.values()]),
            "lead": [Lead.of(a, b).interval() for a, b in zip(epochs, other_epochs, strict=True)],
            "test_lead": Lead.of([r["test"] for r in mine], [r["test"] for r in others]).interval(),
        }
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the comparison; processes may share it")
    parser.add_argument(
        "--initialisations",
        nargs="+",
        default=["he", "ghn-cifar10"],
        help="he, xavier, generators' names or files",
    )
    parser.add_argument("--blocks", type=at_least(1), nargs=3, default=[3, 3, 3], help="of each stage")
    parser.add_argument("--epochs", type=at_least(1), default=20)
    parser.add_argument("--rates", type=positive, nargs="+", default=[0.1], help="grid of each")
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--share", type=share, default=1.0, help="of the training images, evenly by class")
    parser.add_argument("--batch-size", type=at_least(1), default=128)
    parser.add_argument("--weight-decay", type=finite, default=5e-4)
    parser.add_argument("--head", choices=("auto", "keep", "generate"), default="auto")
    parser.add_argument("--noise-scale", type=finite, default=1.0, help="of noise hypernetworks")
    parser.add_argument("--picture", type=Path, help="file for the curves, mean and deviation over seeds")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Train from each, print a line for each network, and the summary."""
    train, validation, test = (load(arguments.data, name) for name in ("train", "validation", "test"))
    course = Course(
        arguments.epochs,
        tuple(arguments.blocks),
        arguments.weight_decay,
        arguments.batch_size,
        arguments.head,
        arguments.amp,
        noise_scale=arguments.noise_scale,
    )
    records = []
    for record in compare(
        arguments.initialisations,
        arguments.rates,
        range(arguments.first_seed, arguments.first_seed + arguments.seeds),
        course,
        (train.spread(round(arguments.share * len(train))), validation, test),
        Path(arguments.run),
        fingerprint.of_file(arguments.data),
    ):
        records.append(record)
        print(json.dumps(record), flush=True)
    found = summary(records)
    print(json.dumps(found))
    if arguments.picture:
        plots.initialisations(found, arguments.picture)
