"""What predictions are worth: every subset, by hand, and the error of a mean over ensembles."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("torchmetrics")

from torch_geninit.training import metrics


def test_measures_by_hand() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]])
    found = metrics.measures(probabilities, torch.tensor([0, 1, 0, 1]))
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4, rel=1e-6)
    assert found["brier"] == pytest.approx((3 * 2 * 0.25**2 + 2 * 0.75**2) / 4)
    assert found["ece"] == pytest.approx(0, abs=1e-6), "three quarters sure, three of four right"


def test_diversity_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = metrics.diversity([one, one.flip(1), torch.tensor([[2.0, 0.0], [1.0, 0.0]])])
    # Pairs: both other, orthogonal; one other, cosine 2 / sqrt(10); one other, 1 / sqrt(10).
    assert found["disagreement"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["cosine"] == pytest.approx(3 / math.sqrt(10) / 3)


def test_all_subsets_are_measured_once() -> None:
    stream = torch.Generator().manual_seed(0)
    logits = [torch.randn(50, 4, generator=stream) for _ in range(4)]
    labels = torch.randint(0, 4, (50,), generator=stream)
    found = metrics.of_all_subsets(logits, labels, 2)
    pairs = [(a + b) / 2 for a, b in combinations(logits, 2)]
    assert found["nll"] == pytest.approx(sum(F.cross_entropy(p, labels).item() for p in pairs) / 6, rel=1e-5)
    right = sum((p.argmax(1) == labels).float().mean().item() for p in pairs) / 6
    assert found["accuracy"] == pytest.approx(right, rel=1e-5)


def test_the_error_of_single_networks_is_that_of_a_mean() -> None:
    values = torch.randn(7, generator=torch.Generator().manual_seed(0)).tolist()
    mean, error = metrics.mean_and_error(values, 7, 1)
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(7))


def test_the_error_of_ensembles_covers_what_other_members_would_have_given() -> None:
    # A sum of pairs' means is linear in the members: the error of the mean is that of the members' mean.
    worths = torch.randn(6, generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [(a + b) / 2 for a, b in combinations(worths, 2)]
    _, error = metrics.mean_and_error(pairs, 6, 2)
    assert error == pytest.approx(statistics.stdev(worths) / math.sqrt(6))
    assert metrics.mean_and_error([0.5], 6, 6) == (0.5, None)


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_is_its_definition(bins: int) -> None:
    draw = torch.Generator().manual_seed(bins)
    probabilities = (2 * torch.randn(400, 10, generator=draw)).softmax(1)
    labels = torch.randint(0, 10, (400,), generator=draw)
    confidence, guess = probabilities.max(1)
    expected = 0.0
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if inside.any():
            right = (guess == labels)[inside].float().mean()
            expected += inside.float().mean().item() * abs(right - confidence[inside].mean()).item()
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_temperature_undoes_a_factor(factor: float) -> None:
    """Labels drawn from softmax(z) make 1 the temperature of z; that of factor * z is the factor."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=draw)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    assert metrics.temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_tables_of_pairs_have_the_mean_of_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    members = [torch.randn(50, 4, generator=draw) for _ in range(3)]
    tables, means = metrics.pairwise(members), metrics.diversity(members)
    for key, table in tables.items():
        upper = [table[i][j] for i in range(3) for j in range(i)]
        assert sum(upper) / 3 == pytest.approx(means[key], abs=1e-6)
        assert [table[i][i] for i in range(3)] == pytest.approx([1.0 if key == "cosine" else 0.0] * 3)
