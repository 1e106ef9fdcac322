"""What to expect of a generated network before training it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch import nn

from torch_geninit import initializers
from torch_geninit.ambient import fixed
from torch_geninit.coverage import OTHER_HEAD
from torch_geninit.generators.expectation import Expectation
from torch_geninit.graph.architecture import Architecture
from torch_geninit.plan import Plan


def expect(
    model: nn.Module,
    *,
    pretrained: initializers.Pretrained = initializers.DEFAULTS["ghn"],
    example_inputs: Any = None,
    graph: Architecture | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Expectation:
    """Tell from the graph alone how accurate ``model`` will be with generated weights, before any training.

    A Gaussian process over networks whose accuracy was measured, without a training step and with BatchNorm
    calibrated; far from all of them it expects chance. It speaks of images like the generator's own: of
    the gain on other data it says only which networks the generator knows. Nothing is written.

    Args:
        model: any network, on meta too; it is not called.
        pretrained: as in :func:`ghn_`.
        example_inputs, graph: as in :func:`ghn_`.
        revision, cache_dir, local_files_only, token: as in :func:`ghn_`.

    Returns:
        Expected accuracy with its 90 % interval, the distance from the training networks, the nearest of the
        networks that were measured, and a caveat where a verb would keep the model or its classifier.

    Raises:
        ValueError: if the generator's file has no measured networks.
        TraceError, HubError: as :func:`ghn_`.

    Example:
        >>> expect(resnet20()).accuracy                                          # doctest: +SKIP
        0.83
    """
    made = initializers.plan(
        model,
        "ghn",
        pretrained=pretrained,
        example_inputs=example_inputs,
        graph=graph,
        untrusted="generate",
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    if not made.generated:
        raise ValueError(
            f"{type(model).__name__} has no parameter to generate, so there is nothing to expect"
        )
    with fixed():
        told = made.pretrained.expectation(made)
    if told is None:
        raise ValueError(
            f"{made.source} can't tell what to expect: its file has no measured networks. "
            "Use a generator that has, or measure them with `python -m torch_geninit.training expectation`"
        )
    return told._replace(caveat="; ".join(_caveats(made)))


def _caveats(made: Plan) -> Iterator[str]:
    if made.verdict is not None and not made.verdict.trusted:
        yield f'ghn_ leaves the model as it is unless untrusted="generate": {made.verdict.reason}'
    heads = [entry for entry in made.kept if entry.reason.startswith(OTHER_HEAD)]
    if heads:
        yield (
            f"this is of its body with a classifier of {len(made.pretrained.card['classes'])} classes; "
            f"{heads[0].name!r}, a {heads[0].reason}, is kept"
        )
