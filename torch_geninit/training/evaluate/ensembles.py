"""What several networks together are worth, on corrupted images too: accuracy, likelihood, calibration."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.data.kernels import zoo_networks
from torch_geninit.training.evaluate.memorisation import stored_networks
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.task_queue import Records


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


def labels_of(zoos: Sequence[str]) -> dict[str, str]:
    """Return short label -> zoo: the parts of the paths that tell them apart."""
    parts = [Path(zoo).resolve().parts for zoo in zoos]
    if len(zoos) > 1:
        while all(len(own) > 1 and own[0] == parts[0][0] for own in parts):
            parts = [own[1:] for own in parts]
        while all(len(own) > 1 and own[-1] == parts[0][-1] for own in parts):
            parts = [own[:-1] for own in parts]
    else:
        parts = [own[-1:] for own in parts]
    return {"/".join(own): zoo for own, zoo in zip(parts, zoos, strict=True)}


def measure(
    zoos: Mapping[str, str], test: Split, folder: str | Path, *, size: int, images: int, data: str = ""
) -> list[dict[str, Any]]:
    """Report on every zoo; several processes share the work, and what is in ``folder`` is not measured again.

    Args:
        zoos: label -> folder of ResNet-20s.
        test: images to measure on.
        folder: of the records, one for each set of networks, whatever their folder is called.
        size, images: as in :func:`report`.
        data: identifies the images.

    Raises:
        ValueError: if a zoo is too small, or ``folder`` holds records of other images or sizes.
    """
    networks = {}
    for label, zoo in zoos.items():
        names = zoo_networks(zoo)
        if len(names) < size:
            raise ValueError(
                f"{zoo} holds {len(names)} networks; expected at least --size {size}: a zoo, or the folder "
                "of one rate of training starts"
            )
        networks[label] = fingerprint.of_files(Path(zoo) / f"{name}.safetensors" for name in names)

    def measured(zoo: str) -> dict[str, Any]:
        return report(stored_networks(zoo, len(test.classes)), test, size=size, images=images)

    records = Records(folder, {"data": data, "size": size, "images": images})
    tasks = {networks[label]: zoo for label, zoo in zoos.items()}
    found = dict(zip(tasks, records.complete(tasks, measured), strict=True))
    return [{"zoo": label, **found[networks[label]]} for label in zoos]


def draw(found: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy, NLL and ECE of ensembles over severity, 0 for clean images, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    kinds = {"accuracy": "accuracy (%)", "nll": "NLL (nats)", "ece": "ECE (%)"}
    for axes, (key, title) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
        unit = 1 if key == "nll" else 100
        for index, one in enumerate(found):
            rows = [one["together"]["clean"], *one["together"]["by severity"].values()]
            values, errors = zip(*(row[key] for row in rows), strict=True)
            axes.errorbar(
                range(len(rows)),
                [unit * value for value in values],
                [unit * (error or 0) for error in errors],
                color=f"C{index}",
                marker="o",
                markersize=3,
                capsize=2,
                label=f"{one['zoo']}, {one['networks']} networks",
            )
        axes.set_xlabel("severity")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(str(path), dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--zoos", nargs="+", required=True, help="folders of ResNet-20s, compared in turn")
    parser.add_argument("--run", required=True, help="folder of the records; processes may share it")
    parser.add_argument("--size", type=at_least(1), default=5, help="networks of an ensemble")
    parser.add_argument("--images", type=at_least(1), default=2000, help="for each corruption and severity")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="images to measure on"
    )
    parser.add_argument("--picture", type=Path, help="file for ensembles over severities")


def main(arguments: argparse.Namespace) -> None:
    found = measure(
        labels_of(arguments.zoos),
        load(arguments.data, arguments.split),
        arguments.run,
        size=arguments.size,
        images=arguments.images,
        data=f"{fingerprint.of_file(arguments.data)}/{arguments.split}",
    )
    for one in found:
        print(json.dumps(one), flush=True)
    if arguments.picture:
        draw(found, arguments.picture)
