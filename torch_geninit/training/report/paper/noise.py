"""The noise's amplitude against accuracy and diversity, before and after training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_geninit.hub import manifest
from torch_geninit.hub.file import read
from torch_geninit.training import metrics
from torch_geninit.training.evaluate.initialise import fill_
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.networks.resnet import he_
from torch_geninit.training.report.paper.budget import Budget
from torch_geninit.training.report.paper.initialisations import REGISTRY, calibrate, network
from torch_geninit.training.report.paper.trainings import Bench, train_network

EXPERIMENT = "noise"
GENERATOR = "noise-ghn-cifar10"


def amplitude(bench: Bench, scale: float, lr: float, budget: Budget) -> dict[str, Any]:
    """Record networks of one noise scale on test images: ``before`` and ``after`` some epochs."""
    settings = {
        "content": REGISTRY[GENERATOR].content(),
        "scale": scale,
        "lr": lr,
        "members": budget.scale_members,
        "epochs": budget.scale_epochs,
    }

    def work() -> dict[str, Any]:
        generator = read(manifest.SHIPPED / f"{GENERATOR}.safetensors")
        before, after = [], []
        for seed in range(budget.scale_members):
            model = he_(network(bench.setup, len(bench.train.classes), seed))
            fill_(model, generator, seed, noise_scale=scale, strict=True)
            calibrate(model, bench.setup, bench.train)
            before.append(logits_of(model, bench.test))
            folder = bench.runs / f"noise-{scale:g}-{lr:g}-{budget.scale_epochs}-{seed}"
            train_network(bench, model, lr, seed, budget.scale_epochs, folder)
            after.append(logits_of(model, bench.test))
        labels = bench.test.labels
        return {"before": together(before, labels), "after": together(after, labels)}

    return bench.make(EXPERIMENT, settings, work)


def together(logits: Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    """Return the members' mean accuracy, that of their averaged logits, and their differences."""
    return {
        "member": statistics.mean(metrics.accuracy(one, labels) for one in logits),
        "together": metrics.accuracy(torch.stack(list(logits)).mean(0), labels),
        **metrics.diversity(logits),
    }
