"""What several networks together are worth, on corrupted images too: accuracy, likelihood, calibration."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from torch_geninit.training.arguments import at_least
from torch_geninit.training.classifier import logits_of
from torch_geninit.training.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from torch_geninit.training.data import Split, load
from torch_geninit.training.memory import stored_networks


def probabilities_of(members: Sequence[Tensor]) -> Tensor:
    """Average the members' logits (paper) and return probabilities (N, classes)."""
    return torch.stack(list(members)).mean(0).softmax(1)


def measures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, NLL (nats), Brier score and ECE (10 equal bins) of probabilities (N, classes)."""
    one_hot = F.one_hot(labels, probabilities.shape[1])
    return {
        "accuracy": (probabilities.argmax(1) == labels).float().mean().item(),
        "nll": F.nll_loss(probabilities.clamp(min=1e-12).log(), labels).item(),
        "brier": (probabilities - one_hot).square().sum(1).mean().item(),
        "ece": multiclass_calibration_error(
            probabilities, labels, num_classes=probabilities.shape[1], n_bins=10
        ).item(),
    }


def diversity(members: Sequence[Tensor]) -> dict[str, float]:
    """Return mean pairwise disagreement (share of other predictions) and cosine of flattened logits."""
    pairs = list(combinations(members, 2))
    different = [(a.argmax(1) != b.argmax(1)).float().mean() for a, b in pairs]
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
    return {
        "disagreement": torch.stack(different).mean().item(),
        "cosine": torch.stack(cosines).mean().item(),
    }


def of_each_subset(members: Sequence[Tensor], labels: Tensor, size: int) -> dict[str, list[float]]:
    """Return :func:`measures` of every ensemble of ``size`` of the ``members``' logits, in one order."""
    together = [measures(probabilities_of(chosen), labels) for chosen in combinations(members, size)]
    return {key: [one[key] for one in together] for key in together[0]}


def of_all_subsets(members: Sequence[Tensor], labels: Tensor, size: int) -> dict[str, float]:
    """Return the mean of :func:`measures` over all ensembles of ``size`` of the ``members``' logits."""
    return {key: statistics.mean(values) for key, values in of_each_subset(members, labels, size).items()}


def mean_and_error(values: Sequence[float], members: int, size: int) -> tuple[float, float | None]:
    r"""Average a measure of all ensembles of ``size`` out of ``members``; add the mean's standard error.

    The ensembles share members, so the error is the jackknife's over members, which errs on the wide side:

    .. math:: \mathrm{se}^2 = \frac{n - 1}{n} \sum_i (\bar u_{-i} - \bar u_{-\cdot})^2

    where the first mean is over the ensembles without member i. None if every ensemble has all members.

    Source: B. Efron and C. Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981).
    """
    mean = statistics.mean(values)
    if size == members:
        return mean, None
    subsets = list(combinations(range(members), size))
    without = [
        statistics.mean(value for value, chosen in zip(values, subsets, strict=True) if member not in chosen)
        for member in range(members)
    ]
    return mean, math.sqrt((members - 1) * statistics.pvariance(without))


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--zoos", nargs="+", required=True, help="folders of ResNet-20s, compared in turn")
    parser.add_argument("--size", type=at_least(1), default=5, help="networks of an ensemble")
    parser.add_argument("--images", type=int, default=2000, help="of the test set, for each corruption")


def main(arguments: argparse.Namespace) -> None:
    test = load(arguments.data, "test")
    for zoo in arguments.zoos:
        models = stored_networks(zoo, len(test.classes))
        if len(models) < arguments.size:
            raise SystemExit(
                f"{zoo} holds {len(models)} networks; expected at least --size {arguments.size}: a zoo, or "
                "the folder of one rate of training starts"
            )
        found = report(models, test, size=arguments.size, images=arguments.images)
        print(json.dumps({"zoo": Path(zoo).name, **found}), flush=True)
