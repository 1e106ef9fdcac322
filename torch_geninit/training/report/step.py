"""What a training step of a hypernetwork costs, with our operators and with torch's own."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torch_geninit._utils.tables import Table
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training.loops.ghn_learner import Average
from torch_geninit.training.loops.ghn_loss import Objective
from torch_geninit.training.loops.warm_start import sizes_from
from torch_geninit.training.networks.search_space import CLASSICAL, WEIGHTS, Pool, Sample, Space, SpaceOptions

FAMILIES: Mapping[str, Mapping[str, float]] = {"ResNets": {CLASSICAL: 1.0}, "all ten families": WEIGHTS}
IMAGES = ((128, 3, 32, 32), (128, 3, 16, 16))
NETWORKS = 40
COLUMNS = ("networks", "images", "torch, ms", "ours, ms", "networks a second", "median of ratios")


class Step:
    """A training step in bfloat16, with our operators or, ``plain``, torch's under autocast of everything."""

    def __init__(self, plain: bool) -> None:
        torch.manual_seed(0)
        sizes = sizes_from(None, {})
        card = {"sizes": sizes, "classes": [str(index) for index in range(10)], "trained": {}}
        self.plain = plain
        self.generator = GraphHyperNetwork(card)
        self.average = Average(self.generator)
        self.objective = Objective(self.generator, clip=1.0, amp=not plain)
        self.optimizer = torch.optim.AdamW(self.generator.parameters(), 1e-4, fused=not plain)

    def __call__(self, network: Sample, images: Tensor, labels: Tensor) -> float:
        """Return the seconds of CPU time that it takes."""
        if self.plain:
            network = dataclasses.replace(network, rewritten=network.model)
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plain):
            loss, _ = self.objective([network], [images], [labels])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        self.optimizer.step()
        self.average.update(self.generator, 0)
        return time.process_time() - start


def step() -> str:
    """Time both kinds of step in turn on the same networks and images; return the section of the page."""
    rows = []
    for families, frequencies in FAMILIES.items():
        for shape in IMAGES:
            rows.append((families, f"{shape[0]} of {shape[-1]}x{shape[-1]}", *_compare(frequencies, shape)))
            print(" | ".join(rows[-1]), flush=True)
    return "\n".join(
        [
            "## A training step",
            "",
            f"A step of `training ghn --amp` for each of {NETWORKS} random networks, medians of CPU time on "
            "one thread. *torch*: networks as they are written, everything under autocast. *ours*: "
            "`training/operators`, the hypernetwork in float32, fused AdamW. Both in turn in one process, "
            "after a step of each to warm up. *networks a second* is the ratio of the sums.",
            "",
            Table(COLUMNS, rows, numbers=range(2, 6)).markdown(),
        ]
    )


def _compare(frequencies: Mapping[str, float], shape: tuple[int, ...]) -> tuple[str, ...]:
    steps = Step(plain=True), Step(plain=False)
    stream = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=stream).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, shape[:1], generator=stream)
    networks = Pool(Space(10, torch.zeros(1, 3, 32, 32)), SpaceOptions(frequencies), seed=0)
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(NETWORKS):
        network = networks.draw(number)
        for turn in range(2):
            for which in (0, 1) if number % 2 else (1, 0):
                taken = steps[which](network, images, labels)
                if turn:  # the first builds oneDNN's primitives
                    seconds[which].append(taken)
    ratios = [before / after for before, after in zip(*seconds, strict=True)]
    medians = [f"{1e3 * statistics.median(times):.0f}" for times in seconds]
    together = sum(seconds[0]) / sum(seconds[1])
    return *medians, f"{together:.2f} x", f"{statistics.median(ratios):.2f} x"
