"""The space of networks a hypernetwork is trained on, sampled at random and traced once."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor, nn

from torch_geninit.generators.features import NodeFeatures, node_features
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.trace import trace
from torch_geninit.training.networks import ResNet, Shortcut


@dataclass(frozen=True)
class Spec:
    """A basic-block CIFAR residual network with BatchNorm."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: Shortcut

    def held_out(self) -> bool:
        """Whether this is a ResNet-20 of some width or shortcut, which training never sees."""
        return self.blocks == (3, 3, 3)

    def build(self, classes: int) -> ResNet:
        return ResNet(self.blocks, self.widths, classes, self.shortcut)


def sample(random_: random.Random) -> Spec:
    """Draw a residual network of three stages with 1 to 5 blocks each; never three times 3."""
    while True:
        blocks = tuple(random_.choices((1, 2, 3, 4, 5), (2, 6, 6, 4, 2), k=3))
        base = 16 if random_.random() < 0.7 else random_.choice((8, 12, 20, 24))
        shortcut: Shortcut = "A" if random_.random() < 0.75 else "B"
        spec = Spec(blocks, (base, 2 * base, 4 * base), shortcut)
        if not spec.held_out():
            return spec


@dataclass(frozen=True)
class Sample:
    """A network ready to be trained through: its module, its graph, the names of its parameters."""

    model: nn.Module
    architecture: Architecture
    features: NodeFeatures
    names: tuple[str, ...]


class Space:
    """Seeded stream of networks; each distinct one is built and traced once.

    ``model`` of a sample lives on ``device``, its own parameters are never read.
    """

    def __init__(self, classes: int, example: Tensor, device: str = "cpu") -> None:
        self.classes, self.example, self.device = classes, example, device
        self._cache: dict[Spec, Sample] = {}

    def get(self, spec: Spec) -> Sample:
        if spec not in self._cache:
            model = spec.build(self.classes)
            architecture = trace(model, self.example)
            features = node_features(architecture)
            features = NodeFeatures(
                features.primitive.to(self.device),
                features.values.to(self.device),
                features.source.to(self.device),
                features.target.to(self.device),
            )
            names = tuple(name for name, _ in model.named_parameters())
            self._cache[spec] = Sample(model.to(self.device), architecture, features, names)
        return self._cache[spec]

    def __len__(self) -> int:
        return len(self._cache)
