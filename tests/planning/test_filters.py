"""Filters for parameters: include=, exclude= and frozen ones, under whatever name they were given."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torch_geninit as geninit
from tests.support.contract import Net, Verb, equal, fresh, values
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Route
from torch_geninit.parameters.named import list_parameters
from torch_geninit.planning.filters import read_filters

FIRST, SECOND = "blocks.0.conv.weight", "blocks.1.conv.weight"


def tied() -> Net:
    model = fresh()
    model.blocks[1].conv.weight = model.blocks[0].conv.weight
    return model


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_tied_parameter_is_excluded_by_any_of_its_names(verb: Verb, name: str) -> None:
    model = tied()
    before = values(model)
    verb(model, exclude=name, strict=True)
    assert equal(values(model)[FIRST], before[FIRST])
    assert not equal(values(model)["stem.weight"], before["stem.weight"])


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_tied_parameter_is_included_by_any_of_its_names(verb: Verb, name: str) -> None:
    model = tied()
    before = values(model)
    verb(model, include=name, strict=True)
    changed = {n for n, value in values(model).items() if not equal(value, before[n])}
    assert changed == {FIRST, SECOND}


def test_the_plan_says_under_which_name_it_was_excluded(verb: Verb) -> None:
    reasons = {entry.name: entry.reason for entry in verb.plan(tied(), exclude=SECOND).entries}
    assert reasons[FIRST] == f"excluded as {SECOND}"


@pytest.mark.parametrize("part", ["original0", "original1"])
def test_half_of_a_weight_normalised_layer_stands_for_both(
    tiny: Callable[[str], WeightGenerator], part: str
) -> None:
    name = f"1.parametrizations.weight.{part}"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm(nn.Conv2d(4, 4, 3)))
    plan = geninit.plan(model, "vae", pretrained=tiny("vae"), include=name)
    filled = {e.name for e in plan.entries if e.route in (Route.GENERATED, Route.TIED)}
    assert filled == {f"1.parametrizations.weight.original{i}" for i in (0, 1)}
    left = geninit.plan(model, "vae", pretrained=tiny("vae"), exclude=name)
    assert [entry.name for entry in left.generated] == ["0.weight"]


def test_what_is_included_in_vain_is_reported(verb: Verb) -> None:
    model = fresh()
    model.stem.requires_grad_(False)
    before = values(model)
    words = r"1 x named in include=, but frozen .*\(first: stem.weight\)\.\nLeave them out of include="
    with pytest.warns(geninit.GenInitWarning, match=words):
        verb(model, include=["stem.weight", FIRST])
    assert not equal(values(model)[FIRST], before[FIRST])
    with pytest.raises(geninit.StrictError, match="These are stem.weight; nothing was changed"):
        verb(model, include=["stem.weight", SECOND], strict=True)
    assert equal(values(model)[SECOND], before[SECOND])


def test_a_pattern_that_fills_something_is_not_in_vain(verb: Verb) -> None:
    model = fresh()
    model.blocks[0].conv.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(model, include=["stem.*", "blocks.*"], strict=True)


def test_included_and_excluded_at_once_is_reported(verb: Verb) -> None:
    with pytest.raises(geninit.StrictError, match="named in include=, but excluded"):
        verb(fresh(), include=FIRST, exclude="blocks.*", strict=True)


def test_a_head_of_other_size_that_was_asked_for_is_reported(tiny: Callable[[str], WeightGenerator]) -> None:
    with pytest.raises(geninit.StrictError, match="named in include=, but head of other size: 7 outputs"):
        geninit.ghn_(Net(7), pretrained=tiny("ghn"), untrusted="generate", include="head.*", strict=True)


def test_what_vaes_never_draw_and_was_asked_for_is_reported(tiny: Callable[[str], WeightGenerator]) -> None:
    with pytest.raises(geninit.StrictError, match="vae_ draws the weights of torch.nn's convolutions only"):
        geninit.vae_(fresh(), pretrained=tiny("vae"), seed=0, include="head.weight", strict=True)


def test_who_names_a_module_is_told_the_pattern(verb: Verb) -> None:
    with pytest.raises(ValueError, match=r"no parameter matches 'blocks.0'. It is a module; did you mean"):
        verb(fresh(), include="blocks.0")


def test_wishes_of_nothing_keep_nothing() -> None:
    filters = read_filters(list_parameters(fresh()), None, None)
    assert not filters.kept and not filters.asked


def test_a_lazy_parameter_may_be_excluded() -> None:
    filters = read_filters(list_parameters(nn.Sequential(nn.LazyLinear(3))), None, "*")
    assert set(filters.kept.values()) == {"excluded"}


def test_patterns_must_be_text() -> None:
    with pytest.raises(TypeError, match="exclude: expected a parameter name"):
        read_filters(list_parameters(fresh()), None, [torch.zeros(1)])  # type: ignore[list-item]


class Lettered(nn.Module):
    """Parameters whose names hold what glob patterns read as signs."""

    NAMES = ("a[0]", "a0", "what?", "whats", "all*", "alls", "b[!x]", "by", "c[9]")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Conv2d(3, 4, 3, bias=False))


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("name", Lettered.NAMES)
def test_an_exact_name_means_that_parameter_alone(
    tiny: Callable[[str], WeightGenerator], option: str, name: str
) -> None:
    made = geninit.plan(Lettered(), "vae", pretrained=tiny("vae"), **{option: f"{name}.weight"})
    generated = {entry.name for entry in made.generated}
    expected = {f"{other}.weight" for other in Lettered.NAMES if (other == name) == (option == "include")}
    assert generated == expected


def test_an_exact_name_goes_before_one_without_its_wrapper() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model = nn.ModuleDict({"0": nn.Conv2d(3, 4, 3), "module": inner})
    # Without its wrapper "module.0.weight" is called "0.weight", too.
    filters = read_filters(list_parameters(model), None, "0.weight")
    assert set(filters.kept) == {"0.weight"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a[0].*", {"a0.weight"}),  # as a set of characters
        ("a[[]0].*", {"a[0].weight"}),
        ("c[9].*", {"c[9].weight"}),  # there is no c9
        ("what?.weight", {"what?.weight"}),
        ("what?.w*", {"what?.weight", "whats.weight"}),
    ],
)
def test_patterns_of_names_with_signs(pattern: str, expected: set[str]) -> None:
    model = Lettered()
    assert set(read_filters(list_parameters(model), None, pattern).kept) == expected


def test_the_pattern_proposed_for_a_module_with_signs_is_the_right_one() -> None:
    refs = list_parameters(nn.ModuleDict({"a[0]": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 3)}))
    with pytest.raises(ValueError, match="did you mean") as caught:
        read_filters(refs, None, "a[0]")
    proposed = str(caught.value).split("did you mean '")[1].split("'")[0]
    assert set(read_filters(refs, None, proposed).kept) == {"a[0].weight", "a[0].bias"}
