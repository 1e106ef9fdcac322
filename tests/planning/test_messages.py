"""What is said of a plan: in at most three lines, with no remedy that can't help."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.support.contract import Net, Verb, fresh, same, values
from tests.support.probes import with_probe
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.planning import measure, messages

Generators = Callable[[str], WeightGenerator]


def said(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught]


def mixed() -> Net:
    """Something frozen, unread, of an unknown kind, of an unknown kernel size, and a head of other size."""
    model = fresh(classes=7)
    model.stem = nn.Conv2d(3, 12, 9, padding=4)
    model.blocks[0].bn.requires_grad_(False)
    model.unread = nn.Parameter(torch.zeros(3, 3))
    model.blocks[1].scale = nn.Embedding(3, 3)
    return model


def test_a_frozen_model_is_told_so_in_one_line(verb: Verb) -> None:
    model = fresh().requires_grad_(False)
    before = values(model)
    (line,) = said(lambda: verb(model))
    assert line == (
        f"{verb.name}_ writes nothing to Net, since it keeps 10 parameters: "
        "10 x frozen (requires_grad=False) (first: stem.weight)."
    )
    assert same(values(model), before)


def test_a_model_of_which_everything_is_left_out_is_told_so_in_one_line(verb: Verb) -> None:
    (line,) = said(lambda: verb(fresh(), exclude="*"))
    assert "writes nothing" in line and "10 x excluded" in line and "\n" not in line
    model = fresh()
    model.blocks.requires_grad_(False)
    (line,) = said(lambda: verb(model, exclude=["stem.*", "head.*"]))
    assert "6 x frozen (requires_grad=False) (first: blocks.0.conv.weight); 4 x excluded" in line


def test_what_could_not_be_tried_is_told_in_a_line(
    ghn: WeightGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BUDGET", 1.0)
    monkeypatch.setattr(measure, "MOST", 1.0)
    (line,) = said(lambda: geninit.ghn_(fresh(), pretrained=with_probe(ghn)))
    assert "fills 10 of 10 parameters of Net unmeasured, judged by its layers alone: at 3 x 32 x 32" in line
    assert "example_inputs=" in line and "recalibrate_bn_" in line and "\n" not in line
    assert said(lambda: geninit.ghn_(fresh(), pretrained=ghn)) == [], "a generator without a probe can't"


def test_a_part_that_is_kept_while_others_are_filled_is_not_mentioned(verb: Verb) -> None:
    assert said(lambda: verb(fresh(), exclude="stem.*")) == []


@pytest.mark.parametrize("untrusted", ["keep", "generate"])
@pytest.mark.parametrize("unfilled", ["keep", "reset"])
def test_at_most_three_lines(tiny: Generators, untrusted: str, unfilled: str) -> None:
    generator = with_probe(tiny("ghn"))
    made = geninit.plan(mixed(), pretrained=generator, untrusted=untrusted)
    text = str(messages.warning(made, unfilled=unfilled))  # type: ignore[arg-type]
    assert made.skipped and 1 <= len(text.splitlines()) <= 3
    assert "auto" not in text, "of the other generators nothing is known"
    assert ("does not trust" in text) == (untrusted == "generate") == bool(made.generated)


def test_the_many_reasons_of_a_vae_are_counted(tiny: Generators) -> None:
    kernels = nn.ModuleList(nn.Conv2d(3, 3, size) for size in (2, 4, 6, 8, 9))
    (text,) = said(lambda: geninit.vae_(kernels, pretrained=tiny("vae"), seed=0))
    assert "leaves 5 of 10 parameters" in text and "; 2 more reasons." in text
    assert len(text.splitlines()) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_layers_are_named_since_their_weights_are_no_parameters(verb: Verb) -> None:
    model = fresh()
    model.blocks.eval()
    packed = torch.ao.nn.quantized.Conv2d(16, 16, 3)
    model.extra = packed  # type: ignore[assignment]
    lines = said(lambda: verb(model))
    assert [line for line in lines if "leaves a quantised layer of Net as they are (first: extra)" in line]
    with pytest.raises(geninit.StrictError, match="quantised"):
        verb(model, strict=True)


def test_a_model_without_parameters_is_told_so_by_a_hypernetwork(tiny: Generators) -> None:
    (line,) = said(lambda: geninit.ghn_(nn.Sequential(nn.ReLU()), pretrained=tiny("ghn")))
    assert line == "ghn_ writes nothing to Sequential, which has no parameters."
    assert said(lambda: geninit.vae_(nn.ReLU(), pretrained=tiny("vae"))) == []
