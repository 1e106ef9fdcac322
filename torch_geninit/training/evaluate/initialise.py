"""Comparisons take any generator: each is used by the method that it was made for."""

from __future__ import annotations

from typing import Any

from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import registry
from torch_geninit.planning.choose import KINDS
from torch_geninit.planning.plan import Method, Plan


def planned(model: nn.Module, pretrained: str | WeightGenerator, example_inputs: Any = None) -> Plan:
    """Return the plan of the method that ``pretrained`` was made for; VAEs need no ``example_inputs``."""
    method = _method(pretrained)
    if method == "vae":
        return geninit.plan(model, method, pretrained=pretrained)
    return geninit.plan(model, method, pretrained=pretrained, example_inputs=example_inputs)


def fill_(
    model: nn.Module,
    pretrained: str | WeightGenerator,
    seed: int,
    *,
    noise_scale: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Fill ``model`` by the method that ``pretrained`` was made for.

    Args:
        model: any network.
        pretrained: generator, name, file or ``"auto"``.
        seed: of what is drawn; a plain GHN draws nothing.
        noise_scale: of a noise GHN.
        options: of the method; VAEs take no ``example_inputs``, ``head`` or ``untrusted`` and get none.
    """
    if pretrained != registry.AUTO:
        pretrained = geninit.load(pretrained)
    method = _method(pretrained)
    if method == "vae":
        foreign = ("example_inputs", "head", "untrusted")
        options = {key: value for key, value in options.items() if key not in foreign}
        return geninit.vae_(model, pretrained=pretrained, seed=seed, **options)
    if method == "noise_ghn":
        return geninit.noise_ghn_(model, seed, pretrained=pretrained, noise_scale=noise_scale, **options)
    return geninit.ghn_(model, pretrained=pretrained, **options)


def _method(pretrained: str | WeightGenerator) -> Method:
    if pretrained == registry.AUTO:
        return "ghn"
    kind = geninit.load(pretrained).config["kind"]
    return next((method for method, (own, *_) in KINDS.items() if kind == own), "ghn")
