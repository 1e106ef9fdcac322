"""Which of the generators at hand serves a model best, read off its graph and their configs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from torch_geninit._utils.determinism import fixed
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.graph.architecture import Architecture
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.planning.build import plan_graph
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan


def select(
    model: nn.Module,
    method: Method,
    candidates: Iterable[tuple[str, WeightGenerator]],
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> tuple[str, Architecture | None]:
    """Return the name of the candidate that serves ``model`` best, and the graph it was judged by.

    Best is who trusts its prediction; then who can generate most matrices, and most parameters; then, among
    those who trust, who expects the highest accuracy before training; then who is nearest. The whole model
    counts, whatever part of it is to be filled. All read the same graph, so it is traced once.

    Args:
        candidates: names and generators of one kind; outlines will do.
        options: what to read; what is to be filled does not count.
        refs: the parameters of ``model``.

    Raises:
        ValueError: if there are no candidates.
        TraceError: if the architecture can't be read.
    """
    best: tuple[tuple[float, ...], str] | None = None
    options = replace(options, untrusted="generate", include=None, exclude=None)
    for name, generator in candidates:
        made = plan_graph(model, method, generator, name, options, refs)
        options = options.with_graph(made.architecture)
        rank = _rank(made)
        if best is None or rank > best[0]:
            best = rank, name
    if best is None:
        raise ValueError(f"no generator for {method}_ is here; list_pretrained() says where they are")
    return best[1], options.graph


def _rank(made: Plan) -> tuple[float, ...]:
    if made.verdict is None:
        return (0.0,) * 6
    trusted, distance, _ = made.verdict
    matrices = sum(len(entry.shape) > 1 for entry in made.generated)
    expected = 0.0
    if trusted:  # far from all that was measured, an expectation tells nothing
        with fixed(), made.pretrained.unhooked():
            measured = made.pretrained.expectation(made)
        expected = measured.accuracy if measured else 0.0
    # What is outside was never measured: of a network that another one was trained on it may expect too much.
    return (trusted, matrices, distance == 0, len(made.generated), expected, -distance)
