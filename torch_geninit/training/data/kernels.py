"""Data sets of kernel slices or whole filters, one for each convolution of a zoo."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_geninit.generators.vae.model import TrainedLayer
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.runs.state_dicts import opened

if TYPE_CHECKING:
    from torch_geninit.graph.architecture import Shape

CONVOLUTIONS = "convolutions"
"""Key of a stored network's metadata: its convolution weights in order of registration, as a JSON list."""

PARTS = 3
"""Parts of equal depth that the convolutions of other networks are sorted into."""
FEWEST = 200
"""Slices that a part must have to be learned from."""

HELD_OUT = 0.2
"""Share of a zoo's networks that VAEs are measured on and never trained on."""


@dataclass(frozen=True)
class LayerSlices:
    """Slices, or whole filters, of one convolution in several networks.

    Attributes:
        layer: the convolution.
        values: (networks, slices, positions) float32.
        filters: number of the convolution's output channels; slices go filter by filter.
    """

    layer: TrainedLayer
    values: Tensor
    filters: int

    @property
    def all(self) -> Tensor:
        """Slices of all networks, (networks * slices, positions)."""
        return self.values.flatten(0, 1)

    @property
    def training(self) -> Tensor:
        """What to learn from: all slices, or all whole filters and their mirror images.

        Training mirrors images at random, so a filter and its mirror image are equally likely, and there are
        few whole filters; those of depthwise convolutions are such.
        """
        if self.layer.inputs == 1 and not self.layer.depthwise:
            return self.all
        filters = self.all.view(-1, self.layer.inputs, *self.layer.kernel_size)
        return torch.cat([filters, filters.flip(-1)]).flatten(1)


def zoo_networks(zoo: str | Path) -> tuple[str, ...]:
    """Return the names of a zoo's networks, ``<seed>.safetensors``, by seed.

    Raises:
        ValueError: if there are none.
    """
    names = [path.stem for path in Path(zoo).glob("*.safetensors")]
    if not names:
        raise ValueError(
            f"{zoo} holds no networks; expected a folder of .safetensors files, as "
            "`python -m torch_geninit.training zoo` fills one"
        )
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def split_networks(names: Sequence[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split networks into those to train on and those held out, at least one each.

    Raises:
        ValueError: if there are fewer than two networks.
    """
    if len(names) < 2:
        raise ValueError(
            f"the zoo has {len(names)} networks; expected at least 2, one to train on and one held out. "
            "Train more with `python -m torch_geninit.training zoo`"
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, round(HELD_OUT * len(names)))
    chosen = set(order[:held_out])
    return (
        tuple(name for index, name in enumerate(names) if index not in chosen),
        tuple(name for index, name in enumerate(names) if index in chosen),
    )


def read_layers(
    zoo: str | Path,
    names: Sequence[str],
    others: str | Path | None,
    *,
    whole_first: bool,
    held_out: bool,
) -> list[LayerSlices]:
    """Read the ResNet-20s ``names`` of a zoo, and of ``others`` what ResNet-20 lacks.

    The arguments are those of :func:`read_slices` and :func:`read_other_slices`.
    """
    layers = read_slices(zoo, names, whole_first=whole_first)
    if others is not None:
        known = {layer.layer.kernel_size for layer in layers}
        layers += read_other_slices(others, known, held_out=held_out)
    return layers


def read_slices(zoo: str | Path, names: Sequence[str], *, whole_first: bool = False) -> list[LayerSlices]:
    """Read the convolutions of the ResNet-20s ``names`` of a zoo, in the order of the forward pass.

    Args:
        zoo: folder of state dicts.
        names: of its networks.
        whole_first: read the first convolution filter by filter instead of slice by slice.

    Raises:
        ValueError: if a network lacks a convolution or has it in another shape.
    """
    expected = {
        f"{name}.weight": module.weight
        for name, module in resnet20().named_modules()
        if isinstance(module, nn.Conv2d)
    }
    stacks: dict[str, list[Tensor]] = {name: [] for name in expected}
    for network in names:
        path = Path(zoo) / f"{network}.safetensors"
        with opened(path) as file:
            missing = sorted(expected.keys() - set(file.keys()))
            if missing:
                raise ValueError(f"{path} lacks {missing[:3]}; expected the state dict of a ResNet-20")
            for name, weight in expected.items():
                value = file.get_tensor(name).float()
                if value.shape != weight.shape:
                    raise ValueError(
                        f"{path}: {name} has shape {tuple(value.shape)}; expected {tuple(weight.shape)}, "
                        "the state dict of a ResNet-20"
                    )
                stacks[name].append(value)
    layers = []
    for index, (name, weight) in enumerate(expected.items()):
        values = torch.stack(stacks[name])
        whole = whole_first and index == 0
        layer = TrainedLayer(
            name,
            tuple(weight.shape[2:]),
            fan_in=math.prod(weight.shape[1:]),
            depth=index / (len(expected) - 1),
            std=values.square().mean().sqrt().item(),
            inputs=weight.shape[1] if whole else 1,
        )
        slices = values.flatten(2) if whole else values.flatten(1, 2).flatten(2)
        layers.append(LayerSlices(layer, slices, weight.shape[0]))
    return layers


def read_other_slices(zoo: str | Path, known: Collection[Shape], *, held_out: bool) -> list[LayerSlices]:
    """Read depthwise convolutions of any networks, and others whose kernel sizes are not ``known``.

    They are sorted by kernel size, depthwise or not, and third of the depth. Layers of other widths and
    networks are put together, so each is scaled to He's standard deviation for a fan-in of 2, which is 1,
    times what its own network made of it. Every fifth slice is held out: few networks share a kernel size.

    Args:
        zoo: folder of state dicts that list their convolutions.
        known: kernel sizes to leave out but for depthwise convolutions.
        held_out: return what is held out instead of what is not.

    Raises:
        ValueError: if a file does not say which of its tensors are convolutions.
    """
    groups: dict[tuple[Shape, bool, int], list[Tensor]] = defaultdict(list)
    for network in zoo_networks(zoo):
        path = Path(zoo) / f"{network}.safetensors"
        with opened(path) as file:
            order = (file.metadata() or {}).get(CONVOLUTIONS)
            if order is None:
                raise ValueError(
                    f"{path} doesn't list its convolutions; expected a network of "
                    "`python -m torch_geninit.training zoo --families ...`"
                )
            convolutions = json.loads(order)
            for index, name in enumerate(convolutions):
                value = file.get_tensor(name).float()
                size, depthwise = tuple(value.shape[2:]), value.shape[1] == 1
                if size in known and not depthwise:
                    continue
                depth = index / max(1, len(convolutions) - 1)
                part = min(PARTS - 1, int(depth * PARTS))
                scale = math.sqrt(math.prod(value.shape[1:]) / 2)
                groups[size, depthwise, part].append(scale * value.flatten(0, 1).flatten(1))
    layers = []
    for (size, depthwise, part), found in sorted(groups.items()):
        values = torch.cat(found)
        if len(values) >= FEWEST:
            fifth = torch.arange(len(values)) % round(1 / HELD_OUT) == 0
            values = values[fifth == held_out]
            layer = TrainedLayer(
                f"{'x'.join(map(str, size))}{' depthwise' * depthwise}, part {part + 1} of {PARTS}",
                size,
                fan_in=2,
                depth=(part + 0.5) / PARTS,
                std=values.square().mean().sqrt().item(),
                depthwise=depthwise,
            )
            layers.append(LayerSlices(layer, values[None], 1))
    return layers
