"""Sizes of a hypernetwork to train, and its weights from one that is trained already, smaller or folded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.decoder import TemplateBank
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.rng import noise_stream
from torch_geninit.graph.vocabulary import PRIMITIVES
from torch_geninit.training.loops.fold import RANKS, centre, unfold

OF_CLASSES = frozenset({"decoder.head_templates", "decoder.head_bias.weight", "decoder.head_bias.bias"})
"""What has a row for each class: another set of classes learns its own."""

NOISE_START = 0.6
"""Standard deviation of what new noise adds to a hidden unit at first, however many values there are."""

SIZES = {
    "primitives": len(PRIMITIVES),
    "width": 128,
    "rounds": 3,
    "noise": 0,
    "hidden": 256,
    "mix": 64,
    "rank": 256,
    "head_rank": 64,
    "linear_rank": 128,
    "depthwise_rank": 128,
    "basis": 4,
    "channels": 64,
    "kernel": 7,
    "factors": 0,
}


def sizes_from(start: WeightGenerator | None, asked: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of a new generator: those asked for, its start's, and the usual ones.

    Banks of templates get their usual ranks again, and kernels their usual size, which an export had cut.

    Raises:
        ValueError: if the start is no graph hypernetwork, or has more mixed channels or noise values.
    """
    if start is None:
        return {**SIZES, **asked}
    if not isinstance(start, GraphHyperNetwork):
        raise ValueError(f"the start is a {start.config['kind']}; expected a graph hypernetwork")
    own = start.config["sizes"]
    for name, what in (("mix", "mixed channels"), ("noise", "noise values")):
        if asked.get(name, own[name]) < own[name]:
            raise ValueError(
                f"--{name} {asked[name]}: the start has {own[name]} {what}; expected at least as many"
            )
    sizes = {name: own.get(name, 0) or usual for name, usual in SIZES.items()}
    cut = {name: max(sizes[name], SIZES[name]) for name in (*RANKS.values(), "kernel")}
    return {**sizes, **cut, **asked}


@torch.no_grad()
def warm_start_(generator: GraphHyperNetwork, trained: GraphHyperNetwork) -> None:
    """Give ``generator`` the weights of ``trained``, which may be smaller; both then make the same networks.

    Of other classes the classifier is not taken over. Parts that the start lacks keep their random weights,
    as do kernel positions that it lacks and mixed channels, which nothing reads at first. Folded templates
    are unfolded. Decoder columns that read noise are drawn from N(0, NOISE_START^2 / noise): two equal draws
    are a stationary point of the diversity loss, so the start must be loud enough to leave it.

    Raises:
        ValueError: if a tensor of the start has no place in the generator.
    """
    own, state = generator.state_dict(), dict(trained.state_dict())
    _widen(state, own, trained.config["sizes"], generator.config["sizes"])
    for part, bank in trained.decoder.banks.items():
        prefix = f"decoder.banks.{part}"
        if isinstance(bank, TemplateBank) and own[f"{prefix}.templates"].shape[0] > bank.templates.shape[0]:
            made = unfold(bank, own[f"{prefix}.templates"].shape[0], noise_stream(0, prefix))
            keys = ("coefficients.weight", "coefficients.bias", "templates")
            state.update({f"{prefix}.{key}": value for key, value in zip(keys, made, strict=True)})
        _silence(state, f"{prefix}.coefficients.weight", own)
    same_classes = trained.config["classes"] == generator.config["classes"]
    for name, value in state.items():
        tensor = own.get(name)
        if name in OF_CLASSES and not same_classes:
            continue
        if name == "decoder.trunk.0.weight" and tensor is not None and tensor.shape[0] == value.shape[0]:
            tensor[:, : value.shape[1]] = value
            stream = noise_stream(0, name)
            fresh = torch.randn(tensor[:, value.shape[1] :].shape, generator=stream)
            tensor[:, value.shape[1] :] = NOISE_START * max(fresh.shape[1], 1) ** -0.5 * fresh
        elif tensor is None or tensor.shape != value.shape:
            raise ValueError(
                f"the start's {name} is {tuple(value.shape)}; expected "
                f"{tuple(tensor.shape) if tensor is not None else 'no such tensor'}: a graph hypernetwork of "
                "the same sizes, or smaller in mixed channels and ranks"
            )
        else:
            tensor.copy_(value)


def _widen(
    state: dict[str, Tensor], own: Mapping[str, Tensor], old: Mapping[str, int], new: Mapping[str, int]
) -> None:
    """Put the start's kernel positions and mixed channels among those of the generator, the others random."""
    places = centre(new["kernel"], old["kernel"])
    narrow = state.pop("decoder.narrow.weight", None)
    if narrow is not None:
        state["decoder.positions.weight"] = state["decoder.positions.weight"] @ narrow
    for name in ("decoder.positions.weight", "decoder.positions.bias"):
        rest = own[name].shape[1:]
        value = own[name].clone().view(-1, new["mix"], *rest)
        value[places, : old["mix"]] = state[name].view(-1, old["mix"], *rest)
        state[name] = value.flatten(0, 1)


def _silence(state: dict[str, Tensor], name: str, own: Mapping[str, Tensor]) -> None:
    """Let no template read the channels that the start lacks."""
    missing = own[name].shape[1] - state[name].shape[1]
    state[name] = nn.functional.pad(state[name], (0, missing))
