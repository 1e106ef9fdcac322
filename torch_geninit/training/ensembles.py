"""What several networks together are worth: accuracy, likelihood, calibration, disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error


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
