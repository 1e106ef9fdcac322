"""From what the user passes as ``pretrained=`` to the generator that plans: loaded, and of the right kind."""

from __future__ import annotations

import os
from collections.abc import Iterator

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import registry
from torch_geninit.hub.download import HubOptions
from torch_geninit.planning.plan import Method

Pretrained = str | os.PathLike[str] | WeightGenerator

DEFAULTS: dict[Method, str] = {
    "vae": "vae-cifar10",
    "ghn": registry.AUTO,
    "noise_ghn": "noise-ghn-cifar10",
}
KINDS: dict[Method, tuple[str, ...]] = {
    "vae": ("vae",),
    "ghn": ("ghn", "noise-ghn", "published-ghn"),
    "noise_ghn": ("noise-ghn",),
}
"""Kinds of generator that each method can use, its own first; without its noise a noise-ghn is a ghn."""


def is_auto(pretrained: Pretrained) -> bool:
    """Tell whether the generator is to be chosen among those at hand."""
    return isinstance(pretrained, str) and pretrained == registry.AUTO


def load(method: Method, pretrained: Pretrained, hub: HubOptions) -> tuple[WeightGenerator, str]:
    """Load the generator that is meant, and return it with its name, as it was given.

    Raises:
        HubError, GeneratorFileError: if it can't be loaded.
        ValueError: if it was changed after loading, or is of a kind that ``method`` can't use.
    """
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
    return generator, source


def candidates(method: Method, hub: HubOptions) -> Iterator[tuple[str, WeightGenerator]]:
    """Yield name and outline of the generators at hand that ``"auto"`` chooses among.

    Raises:
        ValueError: if ``method`` has nothing to choose from, or a revision is asked for.
    """
    if method == "vae":
        raise ValueError(
            f"pretrained={registry.AUTO!r} chooses among hypernetworks; vae_ chooses layer by layer "
            f"among the VAEs of one file, by default {DEFAULTS['vae']!r}"
        )
    if hub.revision is not None:
        raise ValueError(f"revision={hub.revision!r} can't be combined with pretrained={registry.AUTO!r}")
    return registry.outlines(KINDS[method][0], cache_dir=hub.cache_dir)
