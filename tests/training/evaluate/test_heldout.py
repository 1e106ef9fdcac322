"""Measuring a hypernetwork over unseen networks."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice

import pytest
import torch
from torch import nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate.heldout import (
    REFERENCE_MODELS,
    measure,
    name_of,
    norm_of,
    summary,
    survey_space,
    unseen_specs,
)
from torch_geninit.training.networks import popular
from torch_geninit.training.networks.blocks import Style
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.vgg import VGG


def test_unseen_networks_are_always_the_same_and_never_trained_on() -> None:
    first, again = (list(islice(unseen_specs(4), 4)) for _ in range(2))
    assert first == again and len(set(first)) == 4
    assert all(spec.held_out() for spec in first)


def test_a_network_is_filled_and_measured(tiny: Callable[[str], WeightGenerator], images: Split) -> None:
    spec = Spec("plain", (1, 1), (8, 16))
    (record,) = survey_space(tiny("ghn"), images, images, [spec])
    assert (record["family"], record["norm"], record["generated"]) == ("plain", "batch", 1.0)
    assert 0.0 <= record["accuracy"] <= 1.0 and record["trusted"]

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 8, 5, bias=False)  # never trained on 5x5
            self.head = nn.Linear(8, 10, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x).mean((2, 3)))

    torch.manual_seed(0)
    model = Half()
    kept = model.features.weight.detach().clone()
    record = measure(model, tiny("ghn"), images, images)
    assert record["generated"] == pytest.approx(80 / 680)
    assert not record["trusted"] and torch.equal(model.features.weight, kept)


def test_summary_by_hand() -> None:
    records = [
        {"family": "plain", "norm": "batch", "accuracy": 0.4},
        {"family": "plain", "norm": "none", "accuracy": 0.2},
        {"family": "dense", "norm": "batch", "accuracy": 0.6},
    ]
    found = summary(records)
    assert found["all"]["mean"] == pytest.approx(0.4) and found["all"]["best"] == 0.6
    assert found["plain"]["standard_deviation"] == pytest.approx(0.02**0.5)
    assert found["norm: batch"] == {
        "networks": 2,
        "mean": pytest.approx(0.5),
        "standard_deviation": pytest.approx(0.02**0.5),
        "best": 0.6,
    }


@pytest.mark.parametrize("family", ["vgg", "densenet", "googlenet", "convmixer", "convnext-imagenet"])
def test_the_norm_of_a_network_is_what_its_specification_says(family: str) -> None:
    _, draw = popular.SAMPLERS[family]
    for spec in (draw(random.Random(seed)) for seed in range(5)):
        assert norm_of(spec) == spec.norm


def test_the_norm_of_other_networks_is_the_one_they_have() -> None:
    assert norm_of(Spec("plain", (1,), (8,), Style(norm="group"))) == "group"
    assert norm_of(popular.SAMPLERS["vit"][1](random.Random(0))) == "layer"


def test_networks_beside_resnets_are_measured_too(
    tiny: Callable[[str], WeightGenerator], images: Split
) -> None:
    spec = VGG((1, 1), (8, 16))
    (record,) = survey_space(tiny("ghn"), images, images, [spec])
    assert (record["family"], record["norm"]) == ("vgg", "batch") and 0 <= record["accuracy"] <= 1
    assert name_of(spec).startswith("VGG(convolutions=(1, 1), widths=(8, 16)")


def test_reference_models_are_the_networks_they_are_called() -> None:
    pytest.importorskip("torchvision")
    counts = {
        name: sum(p.numel() for p in build(10).parameters()) for name, build in REFERENCE_MODELS.items()
    }
    assert counts["resnet20"] == 269_722  # 0.27 M in He et al. (2016)
    assert counts["resnet56"] == pytest.approx(0.85e6, rel=0.01)
    assert counts["resnet50 (3x3 stem)"] == 23_520_842
