"""What to expect of a generated network before training it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from torch_geninit import initializers
from torch_geninit._utils.determinism import fixed
from torch_geninit.generators.request import Expectation
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import GUESSED
from torch_geninit.planning.build import OTHER_HEAD
from torch_geninit.planning.choose import DEFAULTS, Pretrained
from torch_geninit.planning.filters import FROZEN
from torch_geninit.planning.plan import Plan


def expect(
    model: nn.Module,
    *,
    pretrained: Pretrained = DEFAULTS["ghn"],
    example_inputs: Any = None,
    graph: Architecture | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Expectation:
    """Tell from the graph alone how accurate ``model`` will be with generated weights, before any training.

    A Gaussian process over networks whose accuracy was measured, without a training step and with BatchNorm
    calibrated; of what is none of the networks of training it expects chance. It speaks of images like the
    generator's own: of the gain on other data it says only which networks the generator knows. Nothing is
    written.

    Args:
        model: any network, on meta too. It is not called; its forward pass runs on a copy, and may have
            effects outside of it (see ``trace``).
        pretrained: as in ``ghn_``; of noise hypernetworks nothing was measured.
        example_inputs, graph: as in ``ghn_``.
        revision, cache_dir, local_files_only, token: as in ``ghn_``.

    Returns:
        Expected accuracy with its 90 % interval, the distance from the training networks, the nearest of the
        networks that were measured, the generator that was asked, and a caveat where the initialiser would
        keep the model or its classifier.

    Raises:
        ValueError: if the generator's file has no measured networks.
        TraceError, HubError: as ``ghn_``.

    Examples:
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
        reasons = Counter(entry.reason for entry in made.entries).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "it has no parameters"
        raise ValueError(
            f"{type(model).__name__} has no parameter that {made.source} would generate, so there is nothing "
            f"to expect: {why}"
        )
    with fixed(), made.pretrained.unhooked():
        expectation = made.pretrained.expectation(made)
    if expectation is None:
        raise ValueError(
            f"{made.source} can't tell what to expect: its file has no measured networks. "
            "Use a generator that has, or measure them with `python -m torch_geninit.training expectation`"
        )
    return expectation._replace(caveat="; ".join(_caveats(made)), source=made.source)


def _caveats(made: Plan) -> Iterator[str]:
    """Say why the model will not start like that."""
    if made.verdict is not None and not made.verdict.trusted:
        yield (
            f'not trusted, ghn_ leaves the model as it is unless untrusted="generate" ({made.verdict.reason})'
        )
    heads = [entry for entry in made.kept if entry.reason.startswith(OTHER_HEAD)]
    if heads:
        yield f"the classifier {heads[0].name!r} keeps its values ({heads[0].reason})"
    frozen = [entry for entry in made.kept if entry.reason.startswith(FROZEN)]
    if frozen:
        yield f"{len(frozen)} parameters keep their values, the first is {frozen[0].name!r} ({FROZEN})"
    graph = made.architecture
    if graph is None:
        return
    own = tuple(made.pretrained.config["input"]["size"])
    # A layer tells how many channels there are; of sizes that were guessed nothing is known.
    known = 1 if any(note.startswith(GUESSED) for note in graph.notes) else len(own)
    for size in sorted({node.shape[1:] for node in graph.nodes if node.op == "input"}):
        if len(size) == len(own) and size[:known] != own[:known]:
            yield f"the model reads images of {_times(size[:known])}, not {_times(own[:known])}"


def _times(size: tuple[int, ...]) -> str:
    channels = f" channel{'s' * (size[0] > 1)}" if len(size) == 1 else ""
    return " x ".join(map(str, size)) + channels
