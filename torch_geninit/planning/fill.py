"""The steps of every initialiser: choose a generator, plan, check, predict, write."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from torch_geninit._utils.checks import check_seed
from torch_geninit._utils.surroundings import undisturbed
from torch_geninit.errors import warn_caller
from torch_geninit.hub.download import HubOptions
from torch_geninit.parameters.named import ParameterRef, list_parameters
from torch_geninit.planning import messages
from torch_geninit.planning.auto import select
from torch_geninit.planning.build import plan_model
from torch_geninit.planning.choose import DEFAULTS, Pretrained, candidates, is_auto, load
from torch_geninit.planning.lone_layers import EqualDraws, refuse_lone_layer
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.prediction import StatisticsOption, Unfilled, check_statistics, refuse_unfilled
from torch_geninit.planning.skipped import packed_layers

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_EQUAL_DRAWS = EqualDraws()


@undisturbed()
def make_plan(
    model: nn.Module, method: Method, pretrained: Pretrained | None, hub: HubOptions, options: PlanOptions
) -> tuple[Plan, list[ParameterRef]]:
    """Return the plan, and the model's parameters that it was made from."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    options.check(method)
    if method != "vae":
        refuse_lone_layer(model, method)
    refs = list_parameters(model, options.name)
    pretrained = DEFAULTS[method] if pretrained is None else pretrained
    if is_auto(pretrained):
        found = candidates(method, hub)
        return select(model, method, found, lambda name: load(method, name, hub)[0], options, refs), refs
    generator, source = load(method, pretrained, hub)
    return plan_model(model, method, generator, source, options, refs), refs


def fill(
    module: ModuleT,
    method: Method,
    pretrained: Pretrained,
    hub: HubOptions,
    options: PlanOptions,
    *,
    unfilled: Unfilled = "keep",
    statistics: StatisticsOption = "fill",
    strict: bool,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise_scale: float = 1.0,
) -> ModuleT:
    """Plan for ``module`` and carry the plan out; every check that can fail runs before the first write."""
    if seed is not None:
        seed = check_seed(seed)
    check_statistics(statistics)
    made, refs = make_plan(module, method, pretrained, hub, options)
    messages.refuse_left_out(made, strict)
    said = [messages.packed(made, packed_layers(module, method), strict)]
    targets = made.parameters.of_planned(module, refs)
    refuse_unfilled(unfilled, targets.left)
    if generator is not None and made.generated:
        with undisturbed():
            seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    prediction = made.predict(seed=seed, noise_scale=noise_scale)
    said.insert(0, messages.warning(made, unfilled=unfilled))
    if method == "vae" and seed is not None and generator is None and not options.name:
        said.append(_EQUAL_DRAWS.warning(module, made, seed))
    for message in filter(None, said):
        warn_caller(message)  # before the first write: a warning may be turned into an error
    return prediction.fill(module, targets, unfilled, statistics)
