"""Plans applied part by part, and the contract on random networks."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torch_geninit as geninit
from tests.support.contract import Block, Net, Verb, equal, fresh, same, state, values
from torch_geninit.generators.entry import Route


def test_part_by_part_equals_whole(verb: Verb) -> None:
    expected = values(verb(fresh()))
    model = fresh()
    plan = verb.plan(model)
    seed = verb.seed
    for part in (model.head, model.blocks[1], model.stem, model.blocks[0].bn, model.blocks[0].conv):
        assert plan.write_(part, seed=seed) is part
    assert same(values(model), expected)
    model = fresh()
    model.apply(verb.plan(model).predict(seed=seed).write_)
    assert same(values(model), expected)


def test_plan_on_meta_fills_the_materialised_model(verb: Verb) -> None:
    expected = values(verb(fresh(), unfilled="reset") if verb.name != "vae" else verb(fresh()))
    with torch.device("meta"):
        model = Net()
    plan = verb.plan(model)
    model.to_empty(device="cpu")
    plan.write_(model.blocks, seed=verb.seed)
    for name, value in values(model).items():
        if name.startswith("blocks") and name in {e.name for e in plan.generated}:
            assert equal(value, expected[name])


def test_a_part_of_another_object_needs_its_prefix(verb: Verb) -> None:
    expected = values(verb(fresh()))
    plan = verb.plan(fresh())
    other = fresh()
    with pytest.raises(ValueError, match="are not in the plan"):
        plan.write_(other.blocks[1], seed=verb.seed)
    plan.write_(other.blocks[1], prefix="blocks.1", seed=verb.seed)
    assert equal(other.blocks[1].conv.weight.detach(), expected["blocks.1.conv.weight"])


def test_a_model_changed_since_its_plan_is_refused(verb: Verb) -> None:
    model = fresh()
    plan = verb.plan(model)
    model.stem = nn.Conv2d(1, 12, 3)
    before = values(model)
    with pytest.raises(ValueError, match=r"'stem.weight'.*\n.*\(12, 3, 3, 3\).*\n.*\(12, 1, 3, 3\)"):
        plan.write_(model, seed=verb.seed)
    assert same(before, values(model))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_holds_for_random_networks(verb: Verb, data: st.DataObject) -> None:
    model = data.draw(networks())
    plan = verb.plan(model)
    before, untouched = values(model), state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        verb(model)
    assert state(model) == untouched
    after = values(model)
    written = {e.name for e in plan.entries if e.route in (Route.GENERATED, Route.TIED)}
    assert {n for n in before if not equal(before[n], after[n])} == written
    assert all(torch.isfinite(v).all() for v in after.values())
    # A second, differently initialised and wrapped copy gets the same values.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        verb(nn.DataParallel(other))
    again = values(other)
    assert all(equal(again[n], after[n]) for n in written)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Chains of convolutions with norms, activations, residuals, ties, freezing, dtypes and layouts."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels = draw(st.integers(1, 20))
    layers: list[nn.Module] = [nn.Conv2d(3, channels, draw(st.sampled_from([1, 3])), padding=1)]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["conv", "block", "relu", "bn", "pool"]))
        if kind == "conv":
            width = draw(st.integers(1, 20))
            bias = draw(st.booleans())
            layers.append(nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding=1, bias=bias))
            channels = width
        elif kind == "block":
            layers.append(Block(channels))
        else:
            layers.append({"relu": nn.ReLU(), "bn": nn.BatchNorm2d(channels), "pool": nn.MaxPool2d(2)}[kind])
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, draw(st.sampled_from([3, 10])))]
    if draw(st.booleans()):
        layers.insert(1, nn.Sequential(*[Block(int(layers[0].out_channels))] * 2))
    model: nn.Module = nn.Sequential(*layers)
    model.train(draw(st.booleans()))
    for p in model.parameters():
        p.requires_grad_(draw(st.integers(0, 4)) > 0)
        with torch.no_grad():
            p.add_(0.123)  # not a value that a generator would make by chance
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return model.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload, no-any-return]
