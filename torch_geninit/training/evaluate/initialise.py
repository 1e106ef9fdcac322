"""Comparisons take any generator: each is used by the verb that it was made for."""

from __future__ import annotations

from typing import Any

from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import registry
from torch_geninit.initializers import KINDS
from torch_geninit.planning.plan import Plan, Verb


def planned(model: nn.Module, pretrained: str | WeightGenerator, example_inputs: Any = None) -> Plan:
    """Return the plan of the verb that ``pretrained`` was made for; VAEs need no ``example_inputs``."""
    verb = _verb(pretrained)
    if verb == "vae":
        return geninit.plan(model, verb, pretrained=pretrained)
    return geninit.plan(model, verb, pretrained=pretrained, example_inputs=example_inputs)


def fill_(
    model: nn.Module,
    pretrained: str | WeightGenerator,
    seed: int,
    *,
    noise_scale: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Fill ``model`` by the verb that ``pretrained`` was made for.

    Args:
        model: any network.
        pretrained: generator, name, file or ``"auto"``.
        seed: of what is drawn; a plain GHN draws nothing.
        noise_scale: of a noise GHN.
        options: of the verb; VAEs take neither ``example_inputs`` nor ``head`` and get none.
    """
    if pretrained != registry.AUTO:
        pretrained = geninit.load(pretrained)
    verb = _verb(pretrained)
    if verb == "vae":
        options = {key: value for key, value in options.items() if key not in ("example_inputs", "head")}
        return geninit.vae_(model, pretrained=pretrained, seed=seed, **options)
    if verb == "noise_ghn":
        return geninit.noise_ghn_(model, seed, pretrained=pretrained, noise_scale=noise_scale, **options)
    return geninit.ghn_(model, pretrained=pretrained, **options)


def _verb(pretrained: str | WeightGenerator) -> Verb:
    if pretrained == registry.AUTO:
        return "ghn"
    kind = geninit.load(pretrained).card["kind"]
    return next((verb for verb, (own, *_) in KINDS.items() if kind == own), "ghn")
