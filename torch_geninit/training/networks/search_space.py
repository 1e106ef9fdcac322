"""The space of networks a hypernetwork is trained on, sampled at random and traced once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torch_geninit.generators.ghn.features import NodeFeatures, node_features, node_positions
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks import popular
from torch_geninit.training.networks.blocks import Activation, Norm, Style
from torch_geninit.training.networks.families import OVER_TOKENS, Positions, Spec
from torch_geninit.training.networks.specification import Specification
from torch_geninit.training.operators.rewrite import rewritten

WEIGHTS: Mapping[str, float] = {
    "plain": 3,
    "basic": 6,
    "bottleneck": 3,
    "preactivation": 3,
    "dense": 2,
    "inception": 2,
    "inverted": 3,
    "convnext": 2,
    "mixer": 1.5,
    "transformer": 3,
}
"""How often each family is drawn, relatively."""

NORMS: tuple[Norm, ...] = ("batch", "group", "layer", "none")
ACTIVATIONS: tuple[Activation, ...] = ("relu", "gelu", "silu", "leaky_relu", "hardswish")

CLASSICAL = "resnet"
"""Draws the ResNets of He et al. 2016, section 4.2, alone: usual, and rare among random networks."""

DRAWN = (*WEIGHTS, CLASSICAL, *popular.SAMPLERS)
"""What may be asked for by name."""


def weights(names: Iterable[str]) -> dict[str, float]:
    """Return how often each of ``names`` (of :data:`DRAWN`) is drawn when these alone are, relatively."""
    return {name: WEIGHTS.get(name, 6.0) for name in names}


def sample(random_: random.Random, families: Mapping[str, float] = WEIGHTS) -> Specification:
    """Draw a network that training may see."""
    return _draw(random_, families, held_out=False)


def sample_unseen(random_: random.Random, families: Mapping[str, float] = WEIGHTS) -> Specification:
    """Draw a network that training never sees (:meth:`Spec.held_out`)."""
    return _draw(random_, families, held_out=True)


def _draw(random_: random.Random, families: Mapping[str, float], *, held_out: bool) -> Specification:
    while True:
        family = random_.choices(list(families), list(families.values()))[0]
        if family in popular.SAMPLERS:
            return popular.SAMPLERS[family][held_out](random_)
        if family == CLASSICAL:
            spec = classical(random_)
        else:
            spec = _tokens(random_, family) if family in OVER_TOKENS else _staged(random_, family)
        if spec.held_out() == held_out:
            return spec


def classical(r: random.Random) -> Spec:
    """Draw a ResNet as of He et al. 2016, section 4.2: three stages of basic blocks, BatchNorm.

    Half have 1 to 5 blocks a stage, half 1 to 10; base widths are 8 to 24, shortcuts A or B.
    """
    most = r.choice((5, 10))
    blocks, base = tuple(r.randint(1, most) for _ in range(3)), r.choice((8, 12, 16, 20, 24))
    return Spec("basic", blocks, (base, 2 * base, 4 * base), Style(shortcut=r.choice(("A", "B"))))


def _staged(r: random.Random, family: str) -> Spec:
    usual = r.random() < 0.5  # half of the networks are what people build, half vary everything
    stages = 3 if usual else r.choice((2, 3, 3, 4))
    most = {"plain": 4, "dense": 6, "inception": 3, "basic": 5, "preactivation": 5}.get(family, 4)
    blocks = tuple(r.randint(1, most) for _ in range(stages))
    if not usual and r.random() < 0.15:  # a deep one: up to 60 layers
        blocks = tuple(r.randint(most, 2 * most) for _ in range(stages))
    wide = family in ("bottleneck", "inception", "convnext")
    base = r.choice((32, 48, 64) if wide else (16, 16, 24, 32)) if usual else r.choice((8, 16, 24, 32, 64))
    growth = 2.0 if usual else r.choice((1.0, 1.5, 2.0))
    widths = tuple(min(256, int(base * growth**stage) // 8 * 8) for stage in range(stages))
    norm: Norm = "batch" if usual or r.random() < 0.4 else r.choice(NORMS)
    if family == "convnext" and usual:
        norm = "layer"
    activation: Activation = "relu" if usual else r.choice(ACTIVATIONS)
    large = family in ("inverted", "convnext", "inception")
    kernel = (7 if family == "convnext" else 3) if usual else r.choice((3, 5, 7) if large else (3, 3, 5))
    if family == "plain" and not usual:
        kernel = r.choice((1, 3, 3, 5, 7))
    style = Style(
        norm=norm,
        activation="gelu" if family == "convnext" and usual else activation,
        kernel=kernel,
        expansion=r.choice((2, 4)) if family == "bottleneck" else r.choice((2, 3, 4)),
        groups=r.choice((1, 1, 1, 2, 4, 8)) if family in ("plain", "basic", "bottleneck") else 1,
        squeeze_excite=family in ("basic", "bottleneck", "preactivation", "inverted") and r.random() < 0.2,
        shortcut="A" if family in ("basic", "preactivation") and r.random() < 0.6 else "B",
        layer_scale=family in ("convnext", "basic", "bottleneck") and not usual and r.random() < 0.3,
    )
    if usual or r.random() < 0.5:
        stem = 2 if family == "convnext" else 3
    else:
        stem = r.choice((2, 3, 4, 5, 7, 11))
    return Spec(
        family,
        blocks,
        widths,
        style,
        stem,
        downsample="max" if family != "convnext" and r.random() < 0.25 else "stride",
        head_hidden=0 if usual or r.random() < 0.7 else r.choice((64, 128, 256)),
    )


def _tokens(r: random.Random, family: str) -> Spec:
    heads = r.choice((2, 3, 4, 6))
    positions: Positions = "none" if family == "mixer" else r.choice(("table", "table", "relative"))
    width = r.choice((64, 96, 128, 192, 256)) if family == "mixer" else heads * r.choice((24, 32, 40))
    return Spec(
        family,
        (r.randint(2, 8),),
        (width,),
        Style(norm="layer", activation=r.choice(("gelu", "gelu", "relu")), expansion=r.choice((2, 4, 4))),
        stem=r.choice((4, 4, 4, 4, 8, 8, 16)),
        heads=heads,
        positions=positions,
        class_token=family == "transformer" and positions == "table" and r.random() < 0.5,
    )


@dataclass(frozen=True)
class Sample:
    """A network ready to be trained through: its module, its graph, the names of its parameters.

    Attributes:
        model: on the meta device and without running statistics: neither is read.
        rewritten: computes the same, faster on the device it is trained on.
        macs: multiplications of a forward pass of one image, of layers with weights.
        size: of the images it is built for.
    """

    spec: Specification
    model: nn.Module
    rewritten: nn.Module
    architecture: Architecture
    features: NodeFeatures
    names: tuple[str, ...]
    macs: int
    size: int


class Space:
    """Networks by specification; each distinct one is built and traced once, features on ``device``."""

    def __init__(self, classes: int, example: Tensor, device: str = "cpu") -> None:
        self.classes, self.example, self.device = classes, example, device
        self._cache: dict[Specification, Sample] = {}

    def get(self, spec: Specification) -> Sample:
        if spec not in self._cache:
            with torch.device("meta"):
                model = spec.build(self.classes, self.example.shape[-1])
            architecture = trace(model, self.example.to("meta"))
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean = module.running_var = module.num_batches_tracked = None
                    module.track_running_stats = False
            self._cache[spec] = Sample(
                spec,
                model,
                rewritten(model) if self.device == "cpu" else model,
                architecture,
                node_features(architecture).to(self.device),
                tuple(name for name, _ in model.named_parameters()),
                multiplications(architecture),
                self.example.shape[-1],
            )
        return self._cache[spec]

    def within(self, draw: Callable[[random.Random], Specification], seed: str, most_macs: int) -> Sample:
        """Return the first network of ``draw(Random(f"{seed}/{k}"))``, k = 0, 1, ... within ``most_macs``."""
        for attempt in range(1000):
            drawn = self.get(draw(random.Random(f"{seed}/{attempt}")))
            if drawn.macs <= most_macs:
                return drawn
            del self._cache[drawn.spec]
        raise ValueError(f"no network of at most {most_macs:,} multiplications in 1,000 draws")

    def __len__(self) -> int:
        return len(self._cache)


@dataclass(frozen=True)
class SpaceOptions:
    """Which networks to train on.

    Attributes:
        families: how often each is drawn, relatively.
        pool: number of different networks.
        most_macs: multiplications of one forward pass of the largest.
    """

    families: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    pool: int = 2000
    most_macs: int = 60_000_000


class Pool:
    """The networks of a training run: ``options.pool`` of them, each built when it is first drawn."""

    def __init__(self, space: Space, options: SpaceOptions, seed: int) -> None:
        self.space, self.options, self.seed = space, options, seed
        self._members: dict[int, Sample] = {}

    def member(self, number: int) -> Sample:
        if number not in self._members:
            self._members[number] = self.space.within(
                lambda random_: sample(random_, self.options.families),
                f"{self.seed}/{number}",
                self.options.most_macs,
            )
        return self._members[number]

    def draw(self, index: int) -> Sample:
        """Return the network that training sees at its ``index``-th turn."""
        return self.member(random.Random(f"{self.seed}/turn/{index}").randrange(self.options.pool))


def multiplications(architecture: Architecture) -> int:
    """Count the multiplications of convolutions and linear layers for one image."""
    positions = node_positions(architecture)
    return sum(
        math.prod(use.shape) * positions[index]
        for index, node in enumerate(architecture.nodes)
        if node.op in ("conv", "linear")
        for use in node.parameters
        if use.role == "weight"
    )
