"""Train ResNet-20, or one of other depth, from several starts: seeds, and each at its own best rate."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torch_geninit as geninit
from torch_geninit.coverage import Head
from torch_geninit.generators.ghn import GraphHyperNetwork
from torch_geninit.generators.vae import SliceVAEs
from torch_geninit.training.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.data import Split, load
from torch_geninit.training.networks import ResNet, he_, xavier_
from torch_geninit.training.pairs import Lead, best_rate
from torch_geninit.training.records import write_record
from torch_geninit.training.run import Run

LAWS = {"he": he_, "xavier": xavier_}
"""Starts that need no generator."""


def start_from(
    start: str, seed: int, classes: int, head: Head = "auto", blocks: Sequence[int] = (3, 3, 3)
) -> nn.Module:
    """Build a ResNet as ``start`` initialises it: a law of :data:`LAWS`, a generator's name or its file.

    What a generator leaves alone is drawn from He's law with ``seed``, as the draws of a noise GHN and of
    VAEs are; a plain GHN has but one result.
    """
    torch.manual_seed(seed)
    model = ResNet(blocks, num_classes=classes)
    if start in LAWS:
        return LAWS[start](model)
    he_(model)
    generator = geninit.load(start)
    if isinstance(generator, SliceVAEs):
        return geninit.vae_(model, pretrained=generator, seed=seed)
    if isinstance(generator, GraphHyperNetwork) and generator.noise_width:
        return geninit.noise_ghn_(model, seed, pretrained=generator, head=head)
    return geninit.ghn_(model, pretrained=generator, head=head)


@dataclass(frozen=True)
class Course:
    """What all trainings of a comparison have in common.

    Attributes:
        epochs: of SGD with Nesterov momentum, the rate rising over the first fifth, then falling to 0.
        blocks: of each stage, see :class:`ResNet`.
        head: what a GHN does with the classifier.
        calibrate: images that BatchNorm is calibrated on before the first measurement.
    """

    epochs: int
    blocks: Sequence[int] = (3, 3, 3)
    weight_decay: float = 5e-4
    batch_size: int = 128
    head: Head = "auto"
    amp: bool = False
    calibrate: int = 2000


def train_from(
    start: str,
    lr: float,
    seed: int,
    course: Course,
    train: Split,
    validation: Split,
    folder: Path,
) -> dict[str, Any]:
    """Train one network; return its record, and keep it and its weights in ``folder``.

    Record and weights are ``lr<lr>-seed<seed>.json`` and ``.safetensors``; where they exist nothing is
    trained, so an interrupted comparison goes on, and several processes may share the folder. ``validation``
    has the accuracy before training and after every epoch. The seed decides He's draw and the order of the
    images.
    """
    stem = folder / f"lr{lr:g}-seed{seed}"
    record_file = stem.with_name(f"{stem.name}.json")
    if record_file.exists():
        return dict(json.loads(record_file.read_text()))
    model = start_from(start, seed, len(train.classes), course.head, course.blocks)
    run = Run(folder / f"run-{stem.name}")
    if not run.checkpoint.exists():
        geninit.recalibrate_bn_(model, (x for x, _ in train.spread(course.calibrate).batches()))
        run.log(epoch=0, validation=score(model, validation).accuracy)
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
        description=f"{folder.name} lr {lr:g} seed {seed}",
    )
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    record = {
        "start": start,
        "lr": lr,
        "seed": seed,
        "validation": [line["validation"] for line in lines],
        "seconds": round(run.seconds),
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, f"{stem}.safetensors")
    write_record(record_file, record)
    run.checkpoint.unlink()
    return record


def tested(record: dict[str, Any], course: Course, test: Split, folder: Path) -> dict[str, Any]:
    """Return a record of :func:`train_from` with ``test``, the accuracy of the weights kept in ``folder``."""
    stem = folder / f"lr{record['lr']:g}-seed{record['seed']}"
    if "test" not in record:
        model = ResNet(course.blocks, num_classes=len(test.classes))
        model.load_state_dict(load_file(f"{stem}.safetensors"))
        record = {**record, "test": score(model, test).accuracy}
        write_record(stem.with_name(f"{stem.name}.json"), record)
    return record


def compare(
    starts: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    course: Course,
    splits: tuple[Split, Split, Split],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """Train every start: all rates with the first seed, the others at the best rate; yield the records.

    ``splits`` are for training, for the choice of the rate and, at that rate alone, for the test.
    """
    train, validation, test = splits
    for start in starts:
        own = folder / Path(start).stem
        own.mkdir(parents=True, exist_ok=True)
        first = {lr: train_from(start, lr, seeds[0], course, train, validation, own) for lr in rates}
        best = best_rate({lr: record["validation"][-1] for lr, record in first.items()})
        for lr, record in first.items():
            yield tested(record, course, test, own) if lr == best else record
        for seed in seeds[1:]:
            yield tested(train_from(start, best, seed, course, train, validation, own), course, test, own)


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each start's rate, accuracies by epoch, and lead over the first start, paired by seed.

    ``lead`` is by epoch, ``test_lead`` at the end: mean and half width of the 95 % interval (Student's t).
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for start in dict.fromkeys(record["start"] for record in records):
        trained = [record for record in records if record["start"] == start]
        first = {r["lr"]: r["validation"][-1] for r in trained if r["seed"] == trained[0]["seed"]}
        best = best_rate(first)
        found[start] = {record["seed"]: record for record in trained if record["lr"] == best}
    reference = next(iter(found.values()))
    result = {}
    for start, own in found.items():
        shared = sorted(own.keys() & reference.keys())
        mine, others = ([by_seed[seed] for seed in shared] for by_seed in (own, reference))
        epochs = zip(*(r["validation"] for r in mine), strict=True)
        other_epochs = zip(*(r["validation"] for r in others), strict=True)
        result[start] = {
            "lr": next(iter(own.values()))["lr"],
            "seeds": sorted(own),
            "validation": [
                mean_and_deviation(v) for v in zip(*(r["validation"] for r in own.values()), strict=True)
            ],
            "test": mean_and_deviation([record["test"] for record in own.values()]),
            "lead": [_interval(Lead.of(a, b)) for a, b in zip(epochs, other_epochs, strict=True)],
            "test_lead": _interval(Lead.of([r["test"] for r in mine], [r["test"] for r in others])),
        }
    return result


def draw(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw validation accuracy by epoch from a :func:`summary`: mean and standard deviation over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (start, row) in enumerate(found.items()):
        means, deviations = ([100 * value for value in part] for part in zip(*row["validation"], strict=True))
        epochs = range(len(means))
        label = f"{Path(start).stem}, lr {row['lr']:g}, {len(row['seeds'])} seeds"
        axes.plot(epochs, means, color=f"C{index}", marker="o", markersize=3, label=label)
        low, high = zip(*((m - d, m + d) for m, d in zip(means, deviations, strict=True)), strict=True)
        axes.fill_between(epochs, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(str(path), dpi=110)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; of one value the latter is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _interval(lead: Lead) -> tuple[float, float]:
    return lead.mean, lead.half_width()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the comparison; what is there is kept")
    parser.add_argument(
        "--starts", nargs="+", default=["he", "ghn-cifar10"], help="laws, generators' names or files"
    )
    parser.add_argument("--blocks", type=int, nargs=3, default=[3, 3, 3], help="of each stage")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1], help="grid of every start")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the training images, evenly by class")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--head", choices=("auto", "keep", "generate"), default="auto")
    parser.add_argument("--picture", type=Path, help="file for the curves, mean and deviation over seeds")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Train network by network, a line each as it goes; print the summary."""
    train, validation, test = (load(arguments.data, name) for name in ("train", "validation", "test"))
    course = Course(
        arguments.epochs,
        tuple(arguments.blocks),
        arguments.weight_decay,
        arguments.batch_size,
        arguments.head,
        arguments.amp,
    )
    records = []
    for record in compare(
        arguments.starts,
        arguments.rates,
        range(arguments.first_seed, arguments.first_seed + arguments.seeds),
        course,
        (train.spread(round(arguments.share * len(train))), validation, test),
        Path(arguments.run),
    ):
        records.append(record)
        print(json.dumps(record), flush=True)
    found = summary(records)
    print(json.dumps(found))
    if arguments.picture:
        draw(found, arguments.picture)
