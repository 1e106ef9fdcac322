"""What is compared, by name: He initialisation, the library's own, controls, generators."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.graph.queries import head_nodes
from torch_geninit.training.controls.covariance import covariance_
from torch_geninit.training.controls.impulse import impulse_
from torch_geninit.training.controls.lsuv import lsuv_
from torch_geninit.training.controls.mimetic import mimetic_
from torch_geninit.training.controls.noisy import noisy_
from torch_geninit.training.controls.selection import select_
from torch_geninit.training.evaluate.initialise import fill_
from torch_geninit.training.networks.resnet import he_
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.runs import fingerprint

REFERENCE = "reference"
"""He initialisation of convolutional networks, the library's own of networks over tokens."""

DRAWN: Mapping[str, Callable[..., nn.Module]] = {
    "mimetic": mimetic_,
    "impulse": impulse_,
    "covariance": covariance_,
}
"""Controls that set some of the weights and need nothing; the other weights are the reference's."""

WITHOUT_FILE = (REFERENCE, "he", "library", "lsuv", *DRAWN)
FROM_FILE = re.compile(r"(selection)=(.+)|(noisy)=(.+):([0-9.]+)")
"""``selection=FILE`` and ``noisy=FILE:SHARE``, of a stored network."""

OVER_TOKENS = ("vit", "mixer-imagenet", "transformer", "mixer")
LSUV_IMAGES = 64


def over_tokens(spec: Specification) -> bool:
    """Tell whether a network mixes patches rather than convolves: it starts and trains another way."""
    return spec.family in OVER_TOKENS


def is_generator(name: str) -> bool:
    """Tell whether a contender is a generator."""
    return name not in WITHOUT_FILE and _from_file(name) is None


def short_name(name: str) -> str:
    """Return what a contender's folder is called."""
    if parts := _from_file(name):
        kind, path, share = parts
        return f"{kind}-{Path(path).stem}" + (f"-{share:g}" if kind == "noisy" else "")
    return Path(name).name.removesuffix(".safetensors")


def content(name: str) -> str:
    """Return what a contender is, told by content where it is in a file."""
    if name in WITHOUT_FILE:
        return name
    if parts := _from_file(name):
        kind, path, share = parts
        return f"{kind} {share:g} {fingerprint.of_file(path)}"
    return fingerprint.of_generator(name)


def initialised(
    name: str,
    spec: Specification,
    classes: int,
    images: Tensor,
    seed: int,
    *,
    untrusted: Literal["keep", "generate"] = "keep",
    noise_scale: float = 1.0,
) -> nn.Module:
    """Build a network as one contender starts it, its classifier always as the library does.

    Everything that is drawn goes by ``seed``. What a contender leaves alone is the reference's.

    Args:
        name: one of :data:`WITHOUT_FILE`, ``selection=FILE``, ``noisy=FILE:SHARE``, or a generator's name or
            file.
        spec: the network.
        classes: of the new images.
        images: some of them (N, 3, H, W), normalised; the shape is the network's input.
        seed: of all draws.
        untrusted: what a hypernetwork does with networks that it does not trust itself with.
        noise_scale: of a noise hypernetwork.

    Raises:
        ValueError: if a control can't serve the network, or a generator fills nothing of it.
    """
    torch.manual_seed(seed)
    model = spec.build(classes, images.shape[-1])
    head = head_names(model, images[:1])
    classifier = {key: model.get_parameter(key).detach().clone() for key in head}
    if name == "he" or (name != "library" and not over_tokens(spec)):
        he_(model)
    generator = torch.Generator().manual_seed(seed)
    if name in DRAWN:
        DRAWN[name](model, generator=generator)
    elif name == "lsuv":
        layers = {key.rpartition(".")[0] for key in head}
        lsuv_(model, images[:LSUV_IMAGES], generator=generator, exclude=layers)
    elif parts := _from_file(name):
        kind, path, share = parts
        source = _stored(path)
        if kind == "selection":
            select_(model, source, exclude=head)
        else:
            noisy_(model, source, share, generator=generator, exclude=head)
    elif is_generator(name):
        options = {"example_inputs": images[:1], "head": "keep", "untrusted": untrusted}
        _generate_(model, name, seed, noise_scale, options)
    with torch.no_grad():
        for key, value in classifier.items():
            model.get_parameter(key).copy_(value)
    return model


def head_names(model: nn.Module, image: Tensor) -> set[str]:
    """Return the names of the classifier's parameters.

    Raises:
        ValueError: if the network does not end in one.
    """
    graph = geninit.trace(model, image)
    names = {use.name for index in head_nodes(graph) for use in graph.nodes[index].parameters}
    if not names:
        raise ValueError(f"{type(model).__name__}: expected a linear or convolutional classifier at the end")
    return names


def _generate_(model: nn.Module, name: str, seed: int, noise_scale: float, options: dict[str, Any]) -> None:
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", geninit.GenInitWarning)
        fill_(model, name, seed, noise_scale=noise_scale, **options)
    if all(torch.equal(value, before[key]) for key, value in model.named_parameters()):
        said = "; ".join(str(warning.message).replace("\n", " ") for warning in told)
        raise ValueError(f"{name}: expected a network that it fills, got one that it leaves alone: {said}")


def _from_file(name: str) -> tuple[str, str, float] | None:
    """Return kind, path and share of noise of a contender that copies a stored network."""
    found = FROM_FILE.fullmatch(name)
    if found is None:
        return None
    selection, path, noisy, noisy_path, share = found.groups()
    return (selection, path, 0.0) if selection else (noisy, noisy_path, float(share))


def _stored(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: expected the state dict of a network, a .safetensors file, got {error}"
        ) from error
