"""The space of training networks: what it holds out, that it is varied, runs, and is counted right."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.families import FAMILIES, Spec
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.networks.search_space import (
    WEIGHTS,
    Pool,
    Space,
    SpaceOptions,
    multiplications,
    sample,
    sample_unseen,
    weights,
)

IMAGE = torch.zeros(1, 3, 32, 32)


def test_training_never_draws_what_is_held_out() -> None:
    drawn = [sample(random.Random(seed), {"basic": 1.0}) for seed in range(2000)]
    drawn += [sample(random.Random(seed)) for seed in range(2000)]
    assert all(spec.blocks not in ((3, 3, 3), (9, 9, 9)) for spec in drawn if spec.family == "basic")
    assert Spec("basic", (3, 3, 3), (8, 16, 32)).held_out()
    unseen = {sample_unseen(random.Random(seed)) for seed in range(300)}
    assert not unseen & set(drawn)


def test_the_resnets_of_he_et_al_may_be_drawn_alone() -> None:
    drawn = [sample(random.Random(seed), weights(["resnet"])) for seed in range(500)]
    assert all(spec.family == "basic" and spec.style.norm == "batch" for spec in drawn)
    assert all(spec.widths == tuple(spec.widths[0] * 2**stage for stage in range(3)) for spec in drawn)
    assert {spec.blocks for spec in drawn}.isdisjoint({(3, 3, 3), (9, 9, 9)})
    assert max(max(spec.blocks) for spec in drawn) == 10


def test_the_space_is_as_wide_as_it_says() -> None:
    specs = [sample(random.Random(seed)) for seed in range(3000)]
    assert {spec.family for spec in specs} == set(WEIGHTS) == set(FAMILIES)
    assert {spec.style.norm for spec in specs} == {"batch", "group", "layer", "none"}
    assert {1, 3, 5, 7} <= {spec.style.kernel for spec in specs}
    widths = [width for spec in specs for width in spec.widths]
    assert min(widths) <= 8 and max(widths) == 256
    assert any(spec.head_hidden for spec in specs) and any(spec.style.squeeze_excite for spec in specs)
    assert {spec.positions for spec in specs if spec.family == "transformer"} == {"table", "relative"}


@pytest.mark.parametrize("family", list(WEIGHTS))
def test_networks_run_and_their_multiplications_are_torchs(family: str) -> None:
    for seed in range(3):
        spec = sample(random.Random(seed), {family: 1.0})
        with torch.device("meta"):
            model = spec.build(10).eval()
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                assert model(torch.empty(1, 3, 32, 32)).shape == (1, 10)
        # torch counts two operations a multiplication, and attention's products, which have no weights.
        torchs = sum(
            count
            for operation, count in counter.get_flop_counts()["Global"].items()
            if "attention" not in str(operation) and "bmm" not in str(operation)
        )
        assert multiplications(trace(model, IMAGE)) * 2 == torchs, spec


def test_resnet20_has_the_published_number_of_multiplications() -> None:
    assert multiplications(trace(resnet20(), IMAGE)) == pytest.approx(40.55e6, rel=0.01)


def test_pools_are_the_same_for_the_same_seed_and_keep_their_limit() -> None:
    options = SpaceOptions({"plain": 1.0, "mixer": 1.0}, pool=3, most_macs=20_000_000)
    drawn = []
    for _ in range(2):
        pool = Pool(Space(10, IMAGE), options, seed=5)
        drawn.append([pool.draw(index).spec for index in range(12)])
    assert drawn[0] == drawn[1] and 1 < len(set(drawn[0])) <= 3
    assert all(pool.draw(index).macs <= options.most_macs for index in range(12))
