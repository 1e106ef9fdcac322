"""Trainings on other images, and how they are compared: the rates on validation, the test images once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.evaluate.contenders import (
    content,
    initialised,
    is_generator,
    over_tokens,
    short_name,
)
from torch_geninit.training.evaluate.paired_stats import best_rate
from torch_geninit.training.evaluate.rate_search import Record, Search, Training, search_rates
from torch_geninit.training.loops.classifier import Phase, Recipe, diverged, score, train_classifier
from torch_geninit.training.networks.popular import FULL_SIZE, REFERENCES
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.state_dicts import load_, save
from torch_geninit.training.runs.task_queue import TaskQueue

NETWORKS: Mapping[str, Specification] = {**REFERENCES, **FULL_SIZE}
CALIBRATION_IMAGES = 2000


@dataclass(frozen=True)
class Course:
    """What all trainings of a comparison have in common, whatever network and images.

    Convolutional networks are trained with SGD, those over tokens with AdamW. The rate rises over ``warmup``
    of the steps and falls to 0 at the end of the last epoch: one schedule, measured on the way.

    Attributes:
        epochs: after which networks are measured, in rising order; the last ends the training.
        weight_decay, token_weight_decay: of SGD and of AdamW.
        image_size: pixels that images are resized to; None: as they are in the file.
        most_images: of each split; None: all.
        untrusted: what a hypernetwork does with networks that it does not trust itself with.
        noise_scale: of noise hypernetworks.
    """

    epochs: tuple[int, ...] = (1, 5, 20)
    batch_size: int = 64
    warmup: float = 0.05
    weight_decay: float = 5e-4
    token_weight_decay: float = 0.05
    image_size: int | None = None
    most_images: int | None = None
    amp: bool = False
    untrusted: Literal["keep", "generate"] = "keep"
    noise_scale: float = 1.0

    def recipe(self, spec: Specification, lr: float, size: int) -> Recipe:
        """Return how a network is trained on images of ``size`` pixels."""
        tokens = over_tokens(spec)
        return Recipe(
            [Phase(size, self.epochs[-1])],
            lr=lr,
            weight_decay=self.token_weight_decay if tokens else self.weight_decay,
            batch_size=self.batch_size,
            warmup=self.warmup,
            shift=max(1, size // 8),
            optimizer="adamw" if tokens else "sgd",
            amp=self.amp,
        )


class Images:
    """A prepared file: its parts are read when they are first asked for.

    Args:
        path: the file.
        course: says how large and how many the images are.
        device: where they lie.
    """

    def __init__(self, path: str | Path, course: Course, device: str = "cpu") -> None:
        self.path, self.course, self.device = Path(path), course, device

    def _read(self, name: str) -> Split:
        split = load(self.path, name)
        return split if self.course.image_size is None else split.resized(self.course.image_size)

    def _measured(self, name: str) -> Split:
        split = self._read(name)
        return split.spread(self.course.most_images or len(split)).to(self.device)

    @cached_property
    def digest(self) -> str:
        return fingerprint.of_file(self.path)

    @cached_property
    def all_train(self) -> Split:
        return self._read("train")

    @cached_property
    def validation(self) -> Split:
        return self._measured("validation")

    @cached_property
    def test(self) -> Split:
        return self._measured("test")

    def train(self, share: float, seed: int) -> Split:
        """Return the same share of each class, drawn with ``seed``, and no more than the course says."""
        train = self.all_train
        share = min(share, (self.course.most_images or len(train)) / len(train))
        if share == 1:
            return train.to(self.device)
        return train.stratified(share, torch.Generator().manual_seed(seed)).to(self.device)


@dataclass(frozen=True)
class Case:
    """One network on one share of one set, from one initialisation."""

    images: Images
    share: float
    network: str
    initialisation: str
    course: Course
    root: Path

    @property
    def spec(self) -> Specification:
        return NETWORKS[self.network]

    @property
    def folder(self) -> Path:
        where = (
            self.images.path.stem,
            f"share{self.share:g}",
            folder_name(self.network),
            short_name(self.initialisation),
        )
        return self.root.joinpath(*where)

    def settings(self) -> dict[str, Any]:
        """Return what the records depend on and nothing else, files by content."""
        foreign = {"weight_decay" if over_tokens(self.spec) else "token_weight_decay"}
        if not is_generator(self.initialisation):
            foreign |= {"untrusted", "noise_scale"}
        return {
            "data": self.images.digest,
            "share": self.share,
            "network": repr(self.spec),
            "initialisation": content(self.initialisation),
            "course": {key: value for key, value in asdict(self.course).items() if key not in foreign},
        }

    def start(self, seed: int) -> nn.Module:
        """Return the network before training."""
        train = self.images.train(self.share, seed)
        batch = train.normalise(train.spread(self.course.batch_size).images).cpu()
        return initialised(
            self.initialisation,
            self.spec,
            len(train.classes),
            batch,
            seed,
            untrusted=self.course.untrusted,
            noise_scale=self.course.noise_scale,
        ).to(self.images.device)

    def served(self, _: None = None) -> Record:
        """Tell why the initialisation can't serve the network, None if it can."""
        try:
            self.start(0)
        except ValueError as error:
            return {"left out": str(error)}
        return {"left out": None}

    def train(self, training: Training) -> Record:
        """Train one network; return its record, and keep its weights after each measured epoch.

        An interrupted training goes on. The seed decides which images, what is drawn and the order.
        ``validation`` is by epoch; the test images are not read.
        """
        lr, seed = training
        model, train = self.start(seed), self.images.train(self.share, seed)
        run = Run(self.folder / f"lr{lr:g}" / f"run-{seed}")
        recipe = self.course.recipe(self.spec, lr, train.images.shape[-1])

        def measure(epoch: int, metrics: dict[str, Any]) -> None:
            if epoch + 1 in self.course.epochs:
                if not diverged(model):
                    calibrate_(model, train)
                metrics["validation"] = accuracy(model, self.images.validation)
                save(model, self.weights(epoch + 1, lr, seed))

        train_classifier(
            model,
            train,
            recipe,
            seed=seed,
            run=run,
            after_epoch=measure,
            description=f"{self.network}, {short_name(self.initialisation)}, lr {lr:g}, seed {seed}",
        )
        lines = map(json.loads, run.metrics.read_text().splitlines())
        run.checkpoint.unlink()
        return {
            **self._name(),
            "lr": lr,
            "seed": seed,
            "images": len(train),
            "validation": {line["epoch"]: line["validation"] for line in lines if "validation" in line},
            "seconds": round(run.seconds),
        }

    def weights(self, epoch: int, lr: float, seed: int) -> Path:
        """Return where the weights of a training lie after ``epoch``."""
        return self.folder / f"lr{lr:g}" / f"{seed}-after-{epoch}.safetensors"

    def best(self, records: Sequence[Record]) -> dict[int, float]:
        """Return the rate with the highest validation accuracy after each measured epoch."""
        return {
            epoch: best_rate({record["lr"]: record["validation"][str(epoch)] for record in records})
            for epoch in self.course.epochs
        }

    def test(self, figure: tuple[int, float, int]) -> Record:
        """Read the test images for one figure: epoch, rate and seed."""
        epoch, lr, seed = figure
        if not self.weights(epoch, lr, seed).exists():  # removed after another comparison's figures
            self.train((lr, seed))
        model = self.spec.build(len(self.images.test.classes), self.images.test.images.shape[-1])
        load_(model, self.weights(epoch, lr, seed))
        found = accuracy(model.to(self.images.device), self.images.test)
        return {**self._name(), "epoch": epoch, "lr": lr, "seed": seed, "test": found}

    def _name(self) -> dict[str, Any]:
        return {
            "data": self.images.path.stem,
            "share": self.share,
            "network": self.network,
            "initialisation": short_name(self.initialisation),
        }


def calibrate_(model: nn.Module, train: Split) -> None:
    """Give BatchNorms the statistics of the training images: few steps leave running ones behind."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        geninit.recalibrate_bn_(model, (images for images, _ in train.spread(CALIBRATION_IMAGES).batches()))


def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of right answers; chance, where training has diverged."""
    return 1 / len(split.classes) if diverged(model) else score(model, split).accuracy


def folder_name(network: str) -> str:
    """Return a network's name without spaces and slashes."""
    return re.sub(r"[^a-z0-9_]+", "-", network.lower())


def compare(
    cases: Sequence[Case],
    rates: Callable[[Specification], Sequence[float]],
    seeds: Sequence[int],
    *,
    keep_weights: bool = False,
    told: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Train all cases, each at its best rates, and return a record for each figure of the test images.

    All rates are trained with the first seed. The best by validation after each measured epoch, perhaps
    another after each, is trained with the others; only then are the test images read, once for each epoch
    and seed. Every training and every figure is one file in the case's folder, and is not made again.

    Args:
        cases: what is compared.
        rates: returns the grid of a network.
        seeds: of every case.
        keep_weights: whether the trained weights stay when all figures are there.
        told: gets a record for each case that is left out, and why.

    Raises:
        ValueError: if two cases have one folder, or a folder holds records of other settings.
    """
    folders = [case.folder for case in cases]
    if len(set(folders)) < len(folders):
        raise ValueError("data, networks, initialisations: expected different names, got two alike")
    searches: dict[Case, Search] = {}
    for case in cases:
        queue = TaskQueue(case.folder, case.settings())
        (served,) = queue.complete({"served": None}, case.served)
        if served["left out"] is not None:
            told({**case._name(), **served})
            continue

        def choose(records: Sequence[Record], case: Case = case) -> list[float]:
            return list(case.best(records).values())

        searches[case] = Search(queue, rates(case.spec), case.train, choose)
    search_rates(list(searches.values()), seeds)
    figures = []
    for case, search in searches.items():
        trained = search.complete().values()
        best = case.best([record for record in trained if record["seed"] == seeds[0]])
        tasks = {
            f"test/{epoch}/lr{lr:g}/{seed}": (epoch, lr, seed) for epoch, lr in best.items() for seed in seeds
        }
        figures += search.queue.complete(tasks, case.test)
        if not keep_weights:
            for lr, seed in search.tasks.values():
                for epoch in case.course.epochs:
                    case.weights(epoch, lr, seed).unlink(missing_ok=True)
    return figures
