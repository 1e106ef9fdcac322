"""What every step of training a hypernetwork sees: rate and resolution, networks, images, noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from torch_geninit.generators.rng import noise_stream
from torch_geninit.training.data.images import Split
from torch_geninit.training.loops.classifier import resize
from torch_geninit.training.loops.ghn_loss import Diversity
from torch_geninit.training.networks.search_space import Pool, Sample
from torch_geninit.training.runs.distributed import World


@dataclass(frozen=True)
class Schedule:
    """Adam's schedule, and how many steps see images of which resolution.

    The rate rises linearly over ``warmup`` steps and falls linearly to zero over the last ``cooldown``, by
    default over all: a run that is to go on for longer falls late. Small images cost a fraction and
    teach most of the way: ``phases`` are (resolution, steps) pairs. A step sees ``networks`` networks with
    ``batch_size`` images each; ``clip`` bounds the gradient of each with respect to its parameters.
    """

    phases: tuple[tuple[int, int], ...]
    lr: float = 1.2e-3
    warmup: int = 200
    cooldown: int | None = None
    batch_size: int = 128
    networks: int = 1
    clip: float = 1.0

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.phases)

    def lr_at(self, step: int) -> float:
        fall = (self.steps - step) / (self.cooldown or self.steps)
        return self.lr * min((step + 1) / max(self.warmup, 1), fall, 1.0)

    def resolution(self, step: int) -> int:
        for resolution, steps in self.phases:
            if step < steps:
                return resolution
            step -= steps
        raise IndexError(f"the schedule has {self.steps} steps")


class Batch(NamedTuple):
    """Networks of a step, each with images, labels and, for a noise GHN, draws (2, nodes, noise)."""

    networks: list[Sample]
    images: list[Tensor]
    labels: list[Tensor]
    draws: list[Tensor]


@dataclass(frozen=True)
class Curriculum:
    """All that a run sees, by its seed alone: the same whether or not it was interrupted.

    Attributes:
        schedule: resolutions, and how many networks and images a step sees.
        images: on the device of training.
        networks: to train on.
        noise: values per node, 0 for a plain GHN.
        diversity: says how noise is drawn.
        world: the processes that share a step's networks.
        seed: of images and noise.
    """

    schedule: Schedule
    images: Split
    networks: Pool
    noise: int
    diversity: Diversity
    world: World
    seed: int

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield this process's share of every step from ``first`` on."""
        count = self.schedule.networks
        images = self._images(first * count)
        for step in range(first, self.schedule.steps):
            batch = Batch([], [], [], [])
            for slot in range(count):
                x, y = next(images)
                if slot % self.world.size != self.world.rank:
                    continue
                index = step * count + slot
                network = self.networks.draw(index)
                batch.networks.append(network)
                batch.images.append(resize(x, self.schedule.resolution(step)))
                batch.labels.append(y)
                if self.noise:
                    stream = noise_stream(self.seed, f"training network {index}")
                    draws = self.diversity.noise(len(network.architecture.nodes), self.noise, stream)
                    batch.draws.append(draws.to(self.networks.space.device))
            yield batch

    def _images(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of each network, from that of number ``first`` on."""
        size = self.schedule.batch_size
        epoch, position = divmod(first, len(self.images) // size)
        while True:
            order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            batches = self.images.shuffled_batches(size, order, augment="flip-crop")
            yield from islice(batches, position, None)
            epoch, position = epoch + 1, 0
