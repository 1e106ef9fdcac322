"""Which of the generators at hand serves a model best, told by what each measures on its own probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.parameters.named import ParameterRef
from torch_geninit.planning.build import draft_graph, plan_graph
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.trust import Candidate, Verdict
from torch_geninit.planning.verdict import by_layers


def select(
    model: nn.Module,
    method: Method,
    candidates: Iterable[tuple[str, WeightGenerator]],
    load: Callable[[str], WeightGenerator],
    options: PlanOptions,
    refs: Sequence[ParameterRef],
) -> Plan:
    """Return the plan of the candidate that serves ``model`` best; it lists them all.

    Best is who is trusted; then who gets farthest from chance on its own probe; then who can generate most
    matrices, and most parameters; then who comes first. Who can't generate a matrix is not run, unless
    nobody can generate all. All read the same graph, so it is traced once.

    Args:
        candidates: names and generators of one kind; outlines will do.
        load: name of a candidate -> the generator.
        options: what to read and to fill.
        refs: the parameters of ``model``.

    Raises:
        ValueError: if there are no candidates.
        TraceError: if the architecture can't be read.
    """
    drafts: dict[str, Plan] = {}
    for name, outline in candidates:
        drafts[name], _ = draft_graph(model, method, outline, name, options, refs)
        options = options.with_graph(drafts[name].architecture)
    if not drafts:
        raise ValueError(f"no generator for {method}_ is here; list_pretrained() says where they are")
    looks = {name: by_layers(draft) for name, draft in drafts.items()}
    able = [name for name, look in looks.items() if look.trusted and drafts[name].generated]
    able = able or [max(drafts, key=lambda name: _filled(drafts[name]))]
    made = {name: plan_graph(model, method, load(name), name, options, refs) for name in able}
    best = made[max(made, key=lambda name: _rank(made[name]))]
    told = tuple(Candidate(name, _told(made.get(name), look)) for name, look in looks.items())
    return replace(best, automatic=True, candidates=told)


def _told(made: Plan | None, look: Verdict) -> Verdict:
    if made is None or made.verdict is None:
        return look._replace(reason=f"not run: {look.reason}")
    return made.verdict


def _filled(plan: Plan) -> tuple[int, int]:
    return sum(len(entry.shape) > 1 for entry in plan.generated), len(plan.generated)


def _rank(plan: Plan) -> tuple[float, ...]:
    if plan.verdict is None:
        return (0.0,) * 4
    trusted, _, measured = plan.verdict
    return (trusted, measured.lift if measured else 0.0, *_filled(plan))
