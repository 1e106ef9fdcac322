"""Trainings from each initialisation, each at its own best rate of a grid that all share."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate.paired_stats import best_rate
from torch_geninit.training.loops.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.report.paper.budget import Setup
from torch_geninit.training.report.paper.initialisations import REGISTRY, initialised, network
from torch_geninit.training.report.paper.records import Records, digest
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.state_dicts import load_, save

EXPERIMENT = "trainings"


@dataclass(frozen=True)
class Bench:
    """Where experiments are made: settings, images, records, and a folder for weights and checkpoints."""

    setup: Setup
    train: Split
    validation: Split
    test: Split
    records: Records
    runs: Path

    def make(self, experiment: str, settings: Mapping[str, Any], work: Any) -> dict[str, Any]:
        """Return the recorded result of ``settings``, or measure and record it."""
        return self.records.make(experiment, settings, asdict(self.setup), work)


def settings_of(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Return the settings of one training."""
    return {"initialisation": name, "content": REGISTRY[name].content(), "lr": lr, "seed": seed}


def train_network(
    bench: Bench, model: nn.Module, lr: float, seed: int, epochs: int, folder: Path
) -> list[dict[str, Any]]:
    """Train ``model`` in place; return for each epoch ``validation``, ``nll`` and ``train_seconds``.

    An interrupted training goes on. Seconds are of training alone, without the validation images.
    """
    run = Run(folder)
    setup = bench.setup
    recipe = Recipe(
        [Phase(bench.train.images.shape[-1], epochs)],
        lr=lr,
        weight_decay=setup.weight_decay,
        batch_size=setup.batch_size,
        amp=setup.amp,
    )
    began = time.perf_counter()

    def measure(_: int, metrics: dict[str, Any]) -> None:
        nonlocal began
        metrics["train_seconds"] = time.perf_counter() - began
        found = score(model, bench.validation)
        metrics["validation"], metrics["nll"] = found
        began = time.perf_counter()

    train_classifier(
        model, bench.train, recipe, seed=seed, run=run, after_epoch=measure, description=folder.name
    )
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    run.checkpoint.unlink()
    run.metrics.unlink()
    return [{key: line[key] for key in ("validation", "nll", "train_seconds")} for line in lines]


def training(bench: Bench, name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train one network, keep its weights among the runs, and record its course."""
    settings = settings_of(name, lr, seed)

    def work() -> dict[str, Any]:
        start = initialised(name, bench.setup, bench.train, seed)
        before = score(start.model, bench.validation)
        folder = bench.runs / f"{name}-lr{lr:g}-{seed}-{digest(settings)}"
        epochs = train_network(bench, start.model, lr, seed, bench.setup.epochs, folder)
        after = score(start.model, bench.test)
        save(start.model, weights_path(bench, settings))
        return {
            "load_and_generate_seconds": start.seconds,
            "calibration_seconds": start.calibration_seconds,
            "validation": [before.accuracy, *(epoch["validation"] for epoch in epochs)],
            "validation_nll": [before.nll, *(epoch["nll"] for epoch in epochs)],
            "train_seconds": [epoch["train_seconds"] for epoch in epochs],
            "test": after.accuracy,
            "test_nll": after.nll,
            "threads": torch.get_num_threads(),
        }

    return bench.make(EXPERIMENT, settings, work)


def weights_path(bench: Bench, settings: Mapping[str, Any]) -> Path:
    """Return where the weights of a training are."""
    return bench.runs / f"{digest(settings)}.safetensors"


def trained_network(bench: Bench, name: str, lr: float, seed: int) -> nn.Module:
    """Return a trained network.

    Raises:
        ValueError: if its record is there but its weights are not.
    """
    training(bench, name, lr, seed)
    path = weights_path(bench, settings_of(name, lr, seed))
    if not path.exists():
        raise ValueError(
            f"{path}: expected the weights of a recorded training, got no such file. Give the --runs folder "
            f"of the records, or delete {bench.records.folder / EXPERIMENT / path.stem}.json to train again"
        )
    model = network(bench.setup, len(bench.train.classes), seed)
    load_(model, path)
    return model


def chosen_rate(bench: Bench, name: str, rates: Sequence[float], seed: int = 0) -> float:
    """Return the rate after which the first seed does best on the validation images."""
    if len(rates) == 1:
        return rates[0]
    return best_rate({lr: training(bench, name, lr, seed)["validation"][-1] for lr in rates})


def compare(
    bench: Bench, names: Sequence[str], rates: Sequence[float], seeds: Mapping[str, int]
) -> dict[str, float]:
    """Train from each initialisation; return name -> best rate. ``seeds`` says how many of each."""
    best = {}
    for name in names:
        best[name] = chosen_rate(bench, name, rates)
        for seed in range(seeds[name]):
            training(bench, name, best[name], seed)
    return best
