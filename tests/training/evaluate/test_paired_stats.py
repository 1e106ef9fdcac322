"""Paired comparisons against scipy's own tests."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("scipy")

from scipy import stats

from torch_geninit.training.evaluate.paired_stats import Lead, best_rate

NEW, OLD = [0.51, 0.48, 0.55, 0.60], [0.50, 0.52, 0.51, 0.53]


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    lead = Lead.of(NEW, OLD)
    low, high = stats.ttest_rel(NEW, OLD).confidence_interval(0.95)
    assert (lead.mean - lead.half_width(), lead.mean + lead.half_width()) == pytest.approx((low, high))


# At -0.08 the one-sided p is 0.042, the two-sided one 0.083.
@pytest.mark.parametrize("shift", [0.0, -0.04, -0.08, -0.2])
def test_surely_behind_is_the_one_sided_test_at_five_percent(shift: float) -> None:
    moved = [value + shift for value in NEW]
    p = stats.ttest_rel(moved, OLD, alternative="less").pvalue
    assert Lead.of(moved, OLD).surely_behind() == (p < 0.05)


def test_one_pair_says_nothing() -> None:
    lead = Lead.of([0.1], [0.9])
    assert math.isinf(lead.half_width()) and not lead.surely_behind()


def test_results_of_other_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError):
        Lead.of([0.1, 0.2], [0.1])


def test_of_equal_rates_the_first_is_best() -> None:
    assert best_rate({0.1: 0.5, 0.01: 0.7, 0.03: 0.7}) == 0.01
