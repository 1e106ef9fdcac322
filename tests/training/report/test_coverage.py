"""The table of coverage: what it counts, how it reads, and, in the full tier, what it says of each model."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.entry import Route
from torch_geninit.training.report import coverage
from torch_geninit.training.report.coverage import Subject
from torch_geninit.training.report.coverage_page import Row, section

SECTIONS = (
    "torchvision classification",
    "torchvision segmentation",
    "torchvision detection",
    "torchvision video",
    "timm",
    "transformers",
)
SHARE = {"torchvision classification": 0.95, "timm": 0.80}
"""Least share of tensors of two or more dimensions that is generated on each model, and over all of them."""

BELOW = {
    **dict.fromkeys(("swin_v2_t", "swin_v2_s", "swin_v2_b"), 0.86),
    "maxvit_t": 0.87,
    "efficientvim_m1": 0.68,
    "inception_next_tiny": 0.62,
    "nf_seresnet26": 0.61,
    "sequencer2d_s": 0.29,
}
"""Models that mix families or have layers of no training network, and the least share of each."""

AT_LEAST = {"torchvision classification": 80, "timm": 65, "transformers": 25}
"""Models in a section."""


PRETRAINED = "ghn-cifar10"


class Tied(nn.Module):
    """One convolution under two names, of a kernel that no generator knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 13, padding=6)
        self.second = self.first
        self.head = nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def test_a_row_counts_what_the_plan_says() -> None:
    subject = Subject("tied", "own", Tied, (torch.randn(2, 3, 16, 16),))
    row = coverage.measure(subject, PRETRAINED)
    assert not row.failure and row.finite
    assert (row.nodes, row.generated, row.total) == (6, 2, 6)
    assert (row.matrices, row.all_matrices) == (1, 3)
    # A tied parameter is kept for the reason of the one that it is tied to.
    assert row.kept == {"never trained on a 13x13 convolution": 2, "never trained on a conv bias": 2}
    assert len(row.milliseconds) == 4 and row.bytes == 4 * sum(p.numel() for p in Tied().parameters())


def test_a_broken_promise_is_a_failure() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    inputs = torch.empty(1, 3, 3, 3)
    plan = geninit.plan(model, pretrained=PRETRAINED, example_inputs=inputs, untrusted="generate")
    assert plan.entries[0].route is Route.GENERATED and plan.entries[1].route is Route.SKIPPED
    before = {name: coverage.sample(p) for name, p in model.named_parameters()}
    assert "said to be generated, but unchanged: 2, first 0.weight" in coverage.broken_promises(
        model, plan, before
    )
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
        model[0].bias.add_(1)
    problems = coverage.broken_promises(model, plan, before)
    assert "not finite: 1, first 0.weight" in problems
    assert "said to be kept, but changed: 1, first 0.bias" in problems


def test_an_exception_is_a_failure_of_its_row_alone() -> None:
    def build() -> nn.Module:
        raise KeyError("no such model")

    assert coverage.measure(Subject("x", "own", build), PRETRAINED).failure == "KeyError: 'no such model'"


def test_a_section_reads_well() -> None:
    rows = [
        Row("one", "", 9, 3, 5, 2, 4, Counter({"no a": 2}), (1.2, 3, 4, 5), 7_000_000, 300_000, True),
        Row("two", "", 8, 4, 5, 3, 3, Counter({"no b": 1, "no a": 4}), (1, 2, 3, 4), None, 2_000_000, None),
        Row("three", "ValueError: no"),
    ]
    text = section(rows, "own", "lib 1.0")
    assert text.startswith("## own\n\n2 of 3 models (lib 1.0): no exception")
    assert (
        "71.4 % are generated: at least 95 % on 1 models, at least 80 % on 1, least on one (50.0 %)" in text
    )
    assert "| one | 9 | 3/5 | 50.0 % | 2 a | 1 | 3 | 4 | 5 | 7 | 0.3 |" in text
    assert "| two | 8 | 4/5 | 100.0 % | 4 a, 1 b | 1 | 2 | 3 | 4 | - | 2 |" in text
    assert "- **a**: no a\n- **b**: no b" in text and "Failed:\n\n- three: ValueError: no" in text


@pytest.mark.full
@pytest.mark.parametrize("section", SECTIONS)
def test_every_model_of_a_section(section: str) -> None:
    suite = section.split()[0]
    pytest.importorskip(suite)
    rows = [coverage.measure(s, "auto") for s in coverage.subjects(suite) if s.section == section]
    assert len(rows) >= AT_LEAST.get(section, 1)
    assert not {row.name: row.failure for row in rows if row.failure}
    assert not [row.name for row in rows if row.finite is False]
    assert all(row.generated + row.kept.total() == row.total for row in rows)
    asked = SHARE.get(section, 0.0)
    low = {row.name: f"{row.share:.3f}" for row in rows if row.share < BELOW.get(row.name, asked)}
    assert not low
    assert sum(row.matrices for row in rows) >= asked * sum(row.all_matrices for row in rows)
