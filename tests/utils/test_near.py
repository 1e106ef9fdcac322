"""What is suggested for a mistyped name."""

from __future__ import annotations

import pytest
from torch import nn

import torch_geninit as geninit
from torch_geninit._utils.near import did_you_mean


@pytest.mark.parametrize(
    ("typed", "meant"), [("vea", "vae"), ("gnn", "ghn"), ("GHN", "ghn"), ("noise-ghn_", "noise_ghn")]
)
def test_one_slip(typed: str, meant: str) -> None:
    assert did_you_mean(typed, ["vae", "ghn", "noise_ghn"]) == f"did you mean {meant!r}?"


@pytest.mark.parametrize("typed", ["", "xyz", None, 7])
def test_what_is_like_nothing_suggests_nothing(typed: object) -> None:
    assert did_you_mean(typed, ["vae", "ghn", "noise_ghn"]) == ""


def test_options_and_parameter_names_suggest() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="head: expected one of .*'keep'.* did you mean 'keep'"):
        geninit.plan(model, "ghn", head="keeep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no parameter matches '0.weigth'. Did you mean '0.weight'\?"):
        geninit.plan(model, "vae", include="0.weigth")
