"""What predictions are worth: accuracy, likelihood and calibration, alone and of ensembles.

torchmetrics counts what it has. Likelihood and cosine are functions of torch itself, and torchmetrics has
neither a Brier score nor the jackknife.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

USEFUL = 0.2
"""Accuracy from which a generated network is worth having; of ten classes, twice chance."""


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of right predictions, from logits or probabilities (N, classes)."""
    classes = predictions.shape[1]
    return multiclass_accuracy(predictions, labels, classes, average="micro", validate_args=False).item()


def probabilities_of(members: Sequence[Tensor]) -> Tensor:
    """Average the members' logits (paper) and return probabilities (N, classes)."""
    return torch.stack(list(members)).mean(0).softmax(1)


def measures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, NLL (nats), Brier score and ECE (10 equal bins) of probabilities (N, classes)."""
    one_hot = F.one_hot(labels, probabilities.shape[1])
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": F.nll_loss(probabilities.clamp(min=1e-12).log(), labels).item(),
        "brier": (probabilities - one_hot).square().sum(1).mean().item(),
        "ece": ece(probabilities, labels, 10),
    }


def ece(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    """Return the expected calibration error of probabilities (N, classes), in equal bins of confidence."""
    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=bins).item()


def temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Return the temperature, between 1/20 and 20, after which logits (N, classes) are likeliest.

    .. math:: T = \arg\min_T -\frac1N \sum_n \log \operatorname{softmax}(z_n / T)_{y_n}

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    most = math.log(20)
    return math.exp(minimize_scalar(loss, bounds=(-most, most), method="bounded").x)


def pairwise(members: Sequence[Tensor]) -> dict[str, list[list[float]]]:
    """Return ``disagreement`` and ``cosine`` of :func:`diversity` for every pair, as square tables."""
    classes = torch.stack([member.argmax(1) for member in members])
    flat = F.normalize(torch.stack([member.flatten() for member in members]).double(), dim=1)
    return {
        "disagreement": (classes[:, None] != classes[None]).double().mean(2).tolist(),
        "cosine": (flat @ flat.T).tolist(),
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
