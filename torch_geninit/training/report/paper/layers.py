"""What a VAE reconstructs badly, against what generating that layer alone does after an epoch."""

from __future__ import annotations

from typing import Any

from torch import nn

from torch_geninit.hub import manifest
from torch_geninit.training.evaluate.initialise import fill_
from torch_geninit.training.loops.classifier import score
from torch_geninit.training.networks.resnet import he_
from torch_geninit.training.report.paper.budget import Budget
from torch_geninit.training.report.paper.initialisations import REGISTRY, calibrate, network
from torch_geninit.training.report.paper.trainings import Bench, train_network

EXPERIMENT = "layers"
GENERATOR = "vae-cifar10"
NO_LAYER = "none"
"""In the place of a layer: the network is He initialised wholly."""


def convolutions(bench: Bench) -> list[str]:
    """Return the names of the network's convolution weights."""
    model = network(bench.setup, len(bench.train.classes), 0)
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def alone(bench: Bench, layer: str, lr: float, budget: Budget) -> dict[str, Any]:
    """Record accuracies after one epoch, a seed each, with ``layer`` by `vae_` and the others by He.

    ``reconstruction`` is the error that the VAE of that layer's name had on held-out networks when it was
    trained, in units of the variance; None for a layer that the manifest does not tell of.
    """
    settings = {
        "layer": layer,
        "content": REGISTRY[GENERATOR].content(),
        "lr": lr,
        "seeds": budget.layer_seeds,
    }

    def work() -> dict[str, Any]:
        found = []
        for seed in range(budget.layer_seeds):
            model = he_(network(bench.setup, len(bench.train.classes), seed))
            if layer != NO_LAYER:
                fill_(model, GENERATOR, seed, include=[layer])
            calibrate(model, bench.setup, bench.train)
            folder = bench.runs / f"layer-{layer}-{lr:g}-{seed}"
            train_network(bench, model, lr, seed, 1, folder)
            found.append(score(model, bench.validation).accuracy)
        return {"validation": found, "reconstruction": _reconstruction(layer)}

    return bench.make(EXPERIMENT, settings, work)


def _reconstruction(layer: str) -> float | None:
    numbers = next(one for one in manifest.read() if one.name == GENERATOR).numbers
    found = numbers.get("by layer", {}).get(layer)
    return None if found is None else found["mse"]
