"""Ensembles by averaged logits, clean and corrupted, before and after temperature scaling."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.training import metrics
from torch_geninit.training.data.corruptions import SEVERITIES, corrupted
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.report.paper.budget import BINS, Budget
from torch_geninit.training.report.paper.initialisations import REGISTRY
from torch_geninit.training.report.paper.trainings import Bench, trained_network

EXPERIMENT = "ensembles"
CLEAN = "0"
"""Key of uncorrupted images among the severities."""


def windows(members: int, size: int) -> list[list[int]]:
    """Return ensembles of ``size`` out of ``members`` in a ring: each network is in equally many.

    Of all members together there is one.
    """
    if size == members:
        return [list(range(members))]
    return [[(first + step) % members for step in range(size)] for first in range(members)]


def measured(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Return accuracy, NLL (nats), Brier score and ECE of logits (N, classes), as they are and scaled."""
    found: dict[str, float] = {}
    for suffix, divisor in (("", 1.0), (" scaled", temperature)):
        probabilities = (logits / divisor).softmax(1)
        values = metrics.measures(probabilities, labels)
        values.pop("ece")
        values |= {f"ece{bins}": metrics.ece(probabilities, labels, bins) for bins in BINS}
        found |= {f"{key}{suffix}": value for key, value in values.items()}
    return found


def report(
    models: Sequence[nn.Module],
    validation: Split,
    test: Split,
    *,
    sizes: Sequence[int],
    corruptions: Sequence[str],
    images: int,
) -> dict[str, Any]:
    """Measure networks alone and in ensembles.

    Temperatures are chosen on clean validation images, one for each ensemble, also for corrupted images.

    Returns:
        ``sizes``: size -> severity -> means of :func:`measured`, over ensembles and corruptions, severity 0
        for clean images; ``temperature``: size -> mean; ``disagreement``, ``cosine``: tables of all pairs.
    """
    chosen_on = torch.stack([logits_of(model, validation) for model in models])
    ensembles = {size: windows(len(models), size) for size in (1, *sizes)}
    temperatures = {
        size: [metrics.temperature(chosen_on[own].mean(0), validation.labels) for own in groups]
        for size, groups in ensembles.items()
    }
    rows: dict[int, dict[str, list[dict[str, float]]]] = {size: {} for size in ensembles}
    pairs: dict[str, Any] = {}
    for severity, data in _conditions(test, corruptions, images):
        logits = torch.stack([logits_of(model, data) for model in models])
        if severity == CLEAN:
            pairs = metrics.pairwise(list(logits))
        for size, groups in ensembles.items():
            rows[size].setdefault(severity, []).extend(
                measured(logits[own].mean(0), data.labels, temperature)
                for own, temperature in zip(groups, temperatures[size], strict=True)
            )
    return {
        "sizes": {
            str(size): {severity: _mean(found) for severity, found in by_severity.items()}
            for size, by_severity in rows.items()
        },
        "temperature": {str(size): statistics.mean(values) for size, values in temperatures.items()},
        **pairs,
    }


def ensemble(bench: Bench, name: str, lr: float, budget: Budget) -> dict[str, Any]:
    """Record what the networks of one initialisation are worth together."""
    settings = {
        "initialisation": name,
        "content": REGISTRY[name].content(),
        "lr": lr,
        "members": budget.members,
        "sizes": list(budget.sizes),
        "corruptions": list(budget.corruptions),
        "images": budget.corrupted_images,
    }

    def work() -> dict[str, Any]:
        models = [trained_network(bench, name, lr, seed) for seed in range(budget.members)]
        return report(
            models,
            bench.validation,
            bench.test,
            sizes=budget.sizes,
            corruptions=budget.corruptions,
            images=budget.corrupted_images,
        )

    return bench.make(EXPERIMENT, settings, work)


def _conditions(test: Split, corruptions: Sequence[str], images: int) -> Iterator[tuple[str, Split]]:
    yield CLEAN, test
    few = test.spread(images)
    for name in corruptions:
        for severity in SEVERITIES:
            yield str(severity), corrupted(few, name, severity)


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(one[key] for one in found) for key in found[0]}
