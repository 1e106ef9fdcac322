"""A zoo: many networks of one architecture, trained from different seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from torch_geninit.training.classifier import Phase, Recipe, score, train_classifier
from torch_geninit.training.data import load
from torch_geninit.training.networks import he_, resnet20
from torch_geninit.training.run import Run

# Early epochs on small images: a ResNet-20 epoch at 16 x 16 costs a quarter of one at 32 x 32.
PHASES = (Phase(16, 2), Phase(24, 2), Phase(32, 3))


def train_zoo(
    data: str | Path,
    folder: str | Path,
    *,
    seeds: range,
    phases: tuple[Phase, ...] = PHASES,
    lr: float = 0.05,
) -> None:
    """Train one He-initialised ResNet-20 for each seed and keep its final weights.

    Writes ``<folder>/<seed>.safetensors`` and one line a network into ``metrics.jsonl``; a seed whose file
    exists is skipped, one interrupted resumes, so several processes may share the folder, each with its own
    seeds.
    """
    folder = Path(folder)
    train, validation, test = (load(data, name) for name in ("train", "validation", "test"))
    for seed in seeds:
        target = folder / f"{seed}.safetensors"
        if target.exists():
            continue
        torch.manual_seed(seed)
        model = he_(resnet20(len(train.classes)))
        run = Run(folder / f"run-{seed}")
        train_classifier(
            model,
            train,
            Recipe(phases, lr=lr, warmup=0.15, optimizer="muon"),
            seed=seed,
            run=run,
            description=f"network {seed}",
        )
        metrics = {
            "seed": seed,
            "validation_accuracy": score(model, validation).accuracy,
            "test_accuracy": score(model, test).accuracy,
        }
        Run(folder).log(network_seconds=round(run.seconds), **metrics)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(target))
        run.checkpoint.unlink()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--zoo", required=True, help="folder of the zoo; networks that exist are kept")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05, help="peak rate of the kernels (Muon)")
    parser.add_argument("--phases", default="16x2,24x2,32x3", help="RESOLUTIONxEPOCHS, comma separated")
    parser.add_argument("--threads", type=int, help="torch threads")


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    phases = tuple(Phase(*map(int, part.split("x"))) for part in arguments.phases.split(","))
    first = arguments.first_seed
    train_zoo(
        arguments.data,
        arguments.zoo,
        seeds=range(first, first + arguments.networks),
        phases=phases,
        lr=arguments.lr,
    )
