"""Measure what is missing, then make pages and pictures from records: the paper's tables and more.

What is recorded is not measured again, so the command goes on where it was stopped, several may share the
folders, and a change of one setting measures only what depends on it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.images import load
from torch_geninit.training.report.paper import cost, ensembles, layers, noise, trainings
from torch_geninit.training.report.paper.budget import BUDGETS, Budget, Setup
from torch_geninit.training.report.paper.initialisations import REFERENCE, REGISTRY
from torch_geninit.training.report.paper.pages import render
from torch_geninit.training.report.paper.records import Records
from torch_geninit.training.report.paper.trainings import Bench
from torch_geninit.training.runs import fingerprint

EXPERIMENTS = ("cost", "trainings", "ensembles", "noise", "layers")


def open_bench(data: str | Path, name: str, budget: Budget, records: Records, runs: Path, amp: bool) -> Bench:
    """Load the images that a budget asks for, and put together what all its records share."""
    train, validation, test = (
        load(data, part, limit)
        for part, limit in (
            ("train", budget.train),
            ("validation", budget.validation),
            ("test", budget.test),
        )
    )
    setup = Setup(
        data=fingerprint.of_file(data),
        data_name=name,
        train=len(train),
        validation=len(validation),
        test=len(test),
        blocks=budget.blocks,
        widths=budget.widths,
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        calibrate=budget.calibrate,
        amp=amp,
    )
    runs.mkdir(parents=True, exist_ok=True)
    return Bench(setup, train, validation, test, records, runs)


def measure(bench: Bench, budget: Budget, names: list[str], experiments: list[str]) -> None:
    """Measure what is missing of some experiments; all need the rates, so trainings come first."""
    if "trainings" in experiments:
        trainings.compare(bench, names, budget.rates, dict.fromkeys(names, budget.seeds))
    if "ensembles" in experiments:
        for name in (name for name in budget.ensembles if name in names):
            rate = trainings.chosen_rate(bench, name, budget.rates)
            ensembles.ensemble(bench, name, rate, budget)
    if "noise" in experiments:
        rate = trainings.chosen_rate(bench, noise.GENERATOR, budget.rates)
        for scale in budget.scales:
            noise.amplitude(bench, scale, rate, budget)
    if "layers" in experiments:
        rate = trainings.chosen_rate(bench, REFERENCE, budget.rates)
        for layer in (layers.NO_LAYER, *layers.convolutions(bench)):
            layers.alone(bench, layer, rate, budget)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="prepared data file; without it nothing is measured")
    parser.add_argument("--data-name", default="CIFAR-10", help="what the pages call the images")
    parser.add_argument("--output", type=Path, default=Path("docs/results/paper"), help="folder of the pages")
    parser.add_argument("--records", type=Path, help="folder of the records; <output>/records otherwise")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/report"), help="folder of weights and checkpoints"
    )
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="full", help="how much is measured")
    parser.add_argument("--initialisations", nargs="+", choices=tuple(REGISTRY), default=list(REGISTRY))
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=at_least(1), help="of each initialisation, if not the budget's")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")


def main(arguments: argparse.Namespace) -> None:
    """Measure, make the pages, and print what was written."""
    began = time.monotonic()
    records = Records(arguments.records or arguments.output / "records")
    if "cost" in arguments.experiments:
        cost.record(records)
    if arguments.data:
        budget = BUDGETS[arguments.budget]
        if arguments.seeds:
            budget = replace(budget, seeds=arguments.seeds)
        bench = open_bench(
            arguments.data, arguments.data_name, budget, records, arguments.runs, arguments.amp
        )
        measure(bench, budget, arguments.initialisations, arguments.experiments)
    for path in render(records.folder, arguments.output):
        print(path)
    print(f"{time.monotonic() - began:.0f} seconds")
