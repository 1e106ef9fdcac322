"""From what the user passes as ``pretrained=`` to the generator that plans: loaded, and of the right kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import registry
from torch_geninit.hub.download import HubOptions
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.planning.auto import select
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method

Pretrained = str | os.PathLike[str] | WeightGenerator

DEFAULTS: dict[Method, str] = {
    "vae": "vae-cifar10",
    "ghn": "ghn-cifar10",
    "noise_ghn": "noise-ghn-cifar10",
}
KINDS: dict[Method, tuple[str, ...]] = {
    "vae": ("vae",),
    "ghn": ("ghn", "noise-ghn", "published-ghn"),
    "noise_ghn": ("noise-ghn",),
}
"""Kinds of generator that each method can use, its own first; without its noise a noise-ghn is a ghn."""


class Chosen(NamedTuple):
    """A generator to plan with.

    Attributes:
        generator: loaded.
        source: its name, as it was given.
        options: those of the plan, with the graph if it was read while choosing.
        automatic: whether ``"auto"`` chose it.
    """

    generator: WeightGenerator
    source: str
    options: PlanOptions
    automatic: bool = False


def choose(
    model: nn.Module,
    method: Method,
    pretrained: Pretrained | None,
    hub: HubOptions,
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> Chosen:
    """Find out which generator is meant, and load it.

    Raises:
        HubError, GeneratorFileError: if it can't be loaded.
        ValueError: if it was changed after loading, or is of a kind that ``method`` can't use.
        TraceError: if the architecture can't be read, where ``"auto"`` has to choose by it.
    """
    pretrained = DEFAULTS[method] if pretrained is None else pretrained
    automatic = isinstance(pretrained, str) and pretrained == registry.AUTO
    if automatic:
        pretrained, options = _automatic(model, method, hub, options, refs)
    if isinstance(pretrained, WeightGenerator):
        generator, source = pretrained, pretrained.source or str(pretrained.config["kind"])
    else:
        generator, source = registry.resolve_again(pretrained, hub), os.fspath(pretrained)
    generator.check_unchanged(source)
    kind = generator.config["kind"]
    if kind not in KINDS[method]:
        raise ValueError(
            f"pretrained={source!r} is of the wrong kind:\n"
            f"  expected: {' or '.join(KINDS[method])}, for {method}_ and what tells about it\n"
            f"  got:      {kind}\n"
            "list_pretrained() says which is which"
        )
    return Chosen(generator, source, options, automatic)


def _automatic(
    model: nn.Module, method: Method, hub: HubOptions, options: PlanOptions, refs: Sequence[ParameterRef]
) -> tuple[str, PlanOptions]:
    if method == "vae":
        raise ValueError(
            f"pretrained={registry.AUTO!r} chooses among hypernetworks; vae_ chooses layer by layer "
            f"among the VAEs of one file, by default {DEFAULTS['vae']!r}"
        )
    if hub.revision is not None:
        raise ValueError(f"revision={hub.revision!r} can't be combined with pretrained={registry.AUTO!r}")
    candidates = registry.outlines(KINDS[method][0], cache_dir=hub.cache_dir)
    name, graph = select(model, method, candidates, options, refs)
    return name, options.with_graph(graph)
