"""Nothing silent: what every verb keeps or refuses, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import torch_geninit as geninit
from tests.support import contract
from tests.support.contract import Net, Verb, equal, fresh, same, state, values
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.entry import Route


def test_meta_is_planned_and_refused(verb: Verb) -> None:
    with torch.device("meta"):
        model = Net()
    real = verb.plan(fresh())
    assert verb.plan(model).entries == real.entries
    with pytest.raises(ValueError, match=r"(?s)'stem.weight' can't be written.*meta.*to_empty") as caught:
        verb(model)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn]
)
def test_dtypes_that_hold_no_weights_are_refused_by_name(verb: Verb, dtype: torch.dtype) -> None:
    model = fresh()
    convert(model.stem, "weight", dtype)
    before = values(model)
    with pytest.raises(ValueError, match=r"'stem.weight'"):
        verb(model, include="*.weight")
    assert all(_equal_bytes(v, before[n]) for n, v in values(model).items())


def test_lazy_parameters_are_refused_by_name(verb: Verb) -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises((ValueError, geninit.TraceError), match="0.weight.*"):
        verb(model)


def test_expanded_parameters_are_refused_by_name(verb: Verb) -> None:
    model = fresh()
    model.stem.weight = nn.Parameter(torch.zeros(1, 1, 3, 3).expand(12, 3, 3, 3))
    with pytest.raises(ValueError, match="'stem.weight'.*"):
        verb(model)


def test_inference_tensors(verb: Verb) -> None:
    with torch.inference_mode():
        model = fresh()
    with pytest.raises(ValueError, match="inference"):
        verb(model)
    with torch.inference_mode():
        verb(model)
        assert same(values(model), values(verb(fresh())))


def test_frozen_and_excluded_are_kept_without_a_word(verb: Verb) -> None:
    model = fresh()
    model.stem.requires_grad_(False)
    before = values(model)
    plan = verb.plan(model, exclude="blocks.0.*")
    routes = {e.name: e for e in plan.entries}
    assert routes["stem.weight"].reason.startswith("frozen")
    assert routes["blocks.0.conv.weight"].reason == "excluded"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(model, exclude="blocks.0.*", strict=True)
    after = values(model)
    for name in before:
        kept = name.startswith(("stem", "blocks.0"))
        assert not kept or equal(before[name], after[name])
    assert not equal(before["blocks.1.conv.weight"], after["blocks.1.conv.weight"])


def test_all_frozen_is_no_error(verb: Verb) -> None:
    model = fresh().requires_grad_(False)
    before = values(model)
    verb(model, strict=True)
    assert same(before, values(model))


def test_include_and_mistyped_patterns(verb: Verb) -> None:
    model = fresh()
    before = values(model)
    verb(model, include=["blocks.1.conv.weight"])
    changed = [n for n, v in values(model).items() if not equal(v, before[n])]
    assert changed == ["blocks.1.conv.weight"]
    for option in ("include", "exclude"):
        with pytest.raises(ValueError, match="no parameter matches 'block.*'"):
            verb(model, **{option: ["block.*"]})


def test_what_is_reset_is_not_told_to_stay_as_it_is(tiny: Callable[[str], WeightGenerator]) -> None:
    model = fresh()
    model.stem = nn.Conv2d(3, 12, 9, padding=4)
    before = values(model)
    words = "ghn_ does not generate .* of Net, whose modules reset them: "
    with pytest.warns(geninit.GenInitWarning, match=words):
        geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
    assert not equal(values(model)["stem.weight"], before["stem.weight"])


def test_tied_parameters_are_written_once_and_reported(verb: Verb) -> None:
    model = fresh()
    model.blocks[1].conv = model.blocks[0].conv
    model.blocks[1].bn.weight = model.blocks[0].bn.weight
    plan = verb.plan(model)
    routes = {e.name: e for e in plan.entries}
    assert routes["blocks.1.conv.weight"].route is Route.TIED
    assert routes["blocks.1.conv.weight"].tied_to == "blocks.0.conv.weight"
    verb(model)
    assert model.blocks[1].conv.weight is model.blocks[0].conv.weight
    assert not equal(values(model)["blocks.0.conv.weight"], values(fresh())["blocks.0.conv.weight"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_shared_by_two_parameters_is_one_parameter(verb: Verb, device: str) -> None:
    model = fresh().to(device)
    model.blocks[1].conv.weight.data = model.blocks[0].conv.weight.data
    plan = verb.plan(model)
    assert {e.name: e.route for e in plan.entries}["blocks.1.conv.weight"] is Route.TIED


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(), nn.Flatten()])
def test_no_parameters_is_no_error(verb: Verb, module: nn.Module) -> None:
    assert verb(module, strict=True) is module
    assert verb.plan(module).entries == ()


def test_only_unsupported_parameters_warn_once_or_raise(verb: Verb) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4))
    inputs = {} if verb.name == "vae" else {"example_inputs": torch.zeros(2, 3, dtype=torch.long)}
    before = values(model)
    with pytest.warns(geninit.GenInitWarning) as caught:
        verb(model, **inputs)
    (warning,) = caught
    assert "3 of 3 parameters" in str(warning.message)
    assert warning.filename == contract.__file__, "points at the caller"
    with pytest.raises(geninit.StrictError, match=r"0\.weight, 1\.weight, 1\.bias"):
        verb(model, strict=True, **inputs)
    assert same(before, values(model))


def test_a_warning_turned_into_an_error_changes_nothing(verb: Verb) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 3))
    before = values(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(geninit.GenInitWarning, match="5x5|kernel"):
            verb(model)
    assert same(before, values(model))


def test_a_wrong_kind_of_generator_is_refused(verb: Verb) -> None:
    other = "ghn" if verb.name != "ghn" else "vae"
    with pytest.raises(ValueError, match=r"wrong kind.*\n.*expected.*\n.*got"):
        verb(fresh(), pretrained=verb.generator(other))


@pytest.mark.parametrize("thing", [torch.zeros(3), None, [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused(verb: Verb, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"torch.nn.Module"):
        verb(thing)


def test_weight_norm_is_written_through_both_parameters(verb: Verb) -> None:
    expected = values(verb(fresh()))
    model = fresh()
    weight_norm(model.stem)
    weight_norm(model.blocks[0].conv, dim=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(model.blocks[1].conv)
    before = state(model)
    verb(model)
    assert state(model) == before
    torch.testing.assert_close(model.stem.weight, expected["stem.weight"])
    torch.testing.assert_close(model.blocks[0].conv.weight, expected["blocks.0.conv.weight"])
    v, g = model.blocks[1].conv.weight_v, model.blocks[1].conv.weight_g
    torch.testing.assert_close(
        g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1), expected["blocks.1.conv.weight"]
    )


def test_half_frozen_weight_norm_is_kept_whole(verb: Verb) -> None:
    model = fresh()
    weight_norm(model.stem)
    model.stem.parametrizations.weight.original0.requires_grad_(False)
    before = values(model)
    verb(model)
    after = values(model)
    assert all(equal(before[n], after[n]) for n in before if n.startswith("stem.parametr"))


def test_spectral_norm_is_refused_by_name(verb: Verb) -> None:
    model = fresh()
    spectral_norm(model.stem)
    before = values(model)
    with pytest.warns(geninit.GenInitWarning, match="SpectralNorm"):
        verb(model)
    after = values(model)
    assert equal(
        after["stem.parametrizations.weight.original"],
        before["stem.parametrizations.weight.original"],
    )


def convert(module: nn.Module, attribute: str, dtype: torch.dtype) -> None:
    tensor = getattr(module, attribute).detach().to(dtype)
    # Integer parameters can't require a gradient, and what doesn't is frozen: kept by design.
    parameter = nn.Parameter(tensor, requires_grad=False)
    if dtype.is_floating_point or dtype.is_complex:
        parameter.requires_grad_(True)
    else:
        parameter = _Claims(tensor)  # type: ignore[assignment]
    setattr(module, attribute, parameter)


class _Claims(nn.Parameter):
    """An integer parameter that claims to be trained, as quantised ones of some libraries do."""

    def __new__(cls, tensor: Tensor) -> _Claims:
        return super().__new__(cls, tensor, requires_grad=False)  # type: ignore[no-any-return]

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        return True


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
