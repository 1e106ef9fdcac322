"""What shares memory with a filled parameter: a view of it, a buffer, a parameter that is to stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.support.contract import Net, Verb, equal, fresh, same, values
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Route

FIRST, SECOND = "blocks.0.conv.weight", "blocks.1.conv.weight"

View = Callable[[Tensor], Tensor]
VIEWS: dict[str, View] = {
    "turned": lambda weight: weight.transpose(0, 1),
    "flattened": lambda weight: weight.view(-1),
    "a part": lambda weight: weight[:3],
    "the same": lambda weight: weight[:],
    "strided": lambda weight: weight[::2, 1:],
    "bytes": lambda weight: weight.view(torch.uint8),
}


def everything(model: nn.Module) -> dict[str, Tensor]:
    return values(model) | {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("view", VIEWS)
def test_a_frozen_view_of_a_parameter_stays(verb: Verb, view: str) -> None:
    model = fresh()
    model.copy = nn.ParameterList(
        [nn.Parameter(VIEWS[view](model.stem.weight.detach()), requires_grad=False)]
    )
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geninit.GenInitWarning)
        verb(model)
    assert equal(model.copy[0], before["copy.0"]) and equal(model.stem.weight, before["stem.weight"])
    entry = next(entry for entry in verb.plan(model).entries if entry.name == "stem.weight")
    assert "copy.0" in entry.reason and "frozen" in entry.reason
    if view != "the same":
        assert entry.route is Route.SKIPPED
        with pytest.raises(geninit.StrictError, match=r"stem\.weight"):
            verb(model, strict=True)


@pytest.mark.parametrize("view", VIEWS)
def test_a_buffer_that_is_a_view_of_a_parameter_stays(verb: Verb, view: str) -> None:
    model = fresh()
    model.stem.register_buffer("copy", VIEWS[view](model.stem.weight.detach()))
    before = everything(model)
    with pytest.warns(geninit.GenInitWarning, match=r"stem\.copy|can't be generated"):
        verb(model)
    assert equal(model.stem.copy, before["stem.copy"])
    reasons = {entry.name: entry.reason for entry in verb.plan(model).entries}
    assert reasons["stem.weight"] == "shares memory with the buffer stem.copy"


@pytest.mark.parametrize("option", ["exclude", "include"])
def test_an_excluded_view_stays(verb: Verb, option: str) -> None:
    model = fresh()
    model.blocks[1].conv.weight = nn.Parameter(model.blocks[0].conv.weight.detach().transpose(0, 1))
    before = everything(model)
    with pytest.warns(geninit.GenInitWarning):
        verb(model, **{option: SECOND if option == "exclude" else ["stem.*", FIRST]})
    assert equal(model.blocks[1].conv.weight, before[SECOND])


def test_a_view_that_would_be_filled_too_follows_the_other(tiny: Callable[[str], WeightGenerator]) -> None:
    model = fresh()
    model.blocks[1].conv.weight = nn.Parameter(model.blocks[0].conv.weight.detach().transpose(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        geninit.vae_(model, pretrained=tiny("vae"), seed=0, strict=True)
    expected = geninit.vae_(fresh(), pretrained=tiny("vae"), seed=0)
    assert equal(model.blocks[0].conv.weight, expected.blocks[0].conv.weight)
    assert equal(model.blocks[1].conv.weight, expected.blocks[0].conv.weight.transpose(0, 1))
    made = geninit.plan(model, "vae", pretrained=tiny("vae"))
    entry = next(entry for entry in made.entries if entry.name == SECOND)
    assert entry.route is Route.KEPT and entry.reason == f"part of the memory of {FIRST}, and changes with it"
    assert same(values(made.write_(model, seed=0)), values(model))


def test_two_that_share_a_part_of_their_memory_are_both_skipped(
    tiny: Callable[[str], WeightGenerator],
) -> None:
    model = fresh()
    memory = torch.randn(18, 12, 3, 3)
    model.blocks[0].conv.weight = nn.Parameter(memory[:12])
    model.blocks[1].conv.weight = nn.Parameter(memory[6:])
    before = values(model)
    with pytest.warns(geninit.GenInitWarning, match="2 of 10 parameters.*shares memory with .*, in part"):
        geninit.vae_(model, pretrained=tiny("vae"), seed=0)
    assert all(equal(values(model)[name], before[name]) for name in (FIRST, SECOND))


def test_what_shares_memory_with_what_is_skipped_is_skipped_too(
    tiny: Callable[[str], WeightGenerator],
) -> None:
    model = fresh()
    memory = torch.randn(24, 12, 3, 3)
    model.stem.weight = nn.Parameter(memory.view(-1)[-324:].view(12, 3, 3, 3))
    model.blocks[0].conv.weight = nn.Parameter(memory[:12])
    model.blocks[1].conv.weight = nn.Parameter(memory[12:])
    model.register_buffer("first", memory[11])
    made = geninit.plan(model, "vae", pretrained=tiny("vae"))
    assert [entry.name for entry in made.generated] == [SECOND]
    reasons = {entry.name: entry.reason for entry in made.entries}
    assert reasons[FIRST] == "shares memory with the buffer first"
    assert reasons["stem.weight"].startswith(f"part of the memory of {SECOND}")


def test_neighbours_in_one_storage_are_filled(verb: Verb) -> None:
    model = fresh()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    at = 0
    for parameter in model.parameters():
        parameter.data = flat[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(values(verb(model)), values(verb(fresh())))


def test_memory_shared_since_the_plan_was_made_is_refused(verb: Verb) -> None:
    made = verb.plan(fresh())
    model = fresh()
    model.stem.register_buffer("copy", model.stem.weight.detach()[1:])
    before = everything(model)
    with pytest.raises(ValueError, match=r"'stem.copy' and 'stem.weight' of Net share memory"):
        made.write_(model, seed=verb.seed)
    assert same(everything(model), before)


def test_shared_memory_is_seen_on_the_meta_device(verb: Verb) -> None:
    with torch.device("meta"):
        model = Net()
    model.stem.register_buffer("copy", model.stem.weight.detach().transpose(0, 1))
    reasons = {entry.name: entry.reason for entry in verb.plan(model).entries}
    assert reasons["stem.weight"] == "shares memory with the buffer stem.copy"
