"""Train a graph hypernetwork through the networks it initialises; with noise, through two draws at once."""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torch_geninit.generators.base import Tile, noise_stream
from torch_geninit.generators.ghn import GraphHyperNetwork
from torch_geninit.training.architectures import Sample, Space, Spec, sample
from torch_geninit.training.classifier import Score, resize, score
from torch_geninit.training.data import Split, load
from torch_geninit.training.networks import resnet20
from torch_geninit.training.run import Run

NOISE_START = 0.2
"""Standard deviation of new noise weights; those of the embedding beside them have about 0.05."""

SAVE_EVERY = 500
"""Steps between checkpoints: a few minutes on two cores."""

SIZES = {
    "width": 128,
    "rounds": 3,
    "noise": 0,
    "hidden": 256,
    "rank": 256,
    "channels": 64,
    "kernel": 7,
}


@dataclass(frozen=True)
class Schedule:
    """Adam's schedule, and how many steps see images of which resolution.

    The rate rises linearly over ``warmup`` steps and falls linearly to zero. Small images cost a fraction and
    teach most of the way: ``phases`` are (resolution, steps) pairs.
    """

    phases: tuple[tuple[int, int], ...]
    lr: float = 1.2e-3
    warmup: int = 200
    batch_size: int = 128

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.phases)

    def lr_at(self, step: int) -> float:
        return self.lr * min((step + 1) / self.warmup, (self.steps - step) / self.steps)

    def resolution(self, step: int) -> int:
        for resolution, steps in self.phases:
            if step < steps:
                return resolution
            step -= steps
        raise IndexError(f"the schedule has {self.steps} steps")


def full_parameters(sample: Sample, tiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Repeat tiles to whole parameters, differentiably (the modulation that breaks ties is left out)."""
    parameters = {}
    for name, tile in tiles.items():
        shape = sample.architecture.uses[name][1].shape
        for dim in range(min(2, tile.ndim)):
            if tile.shape[dim] < shape[dim]:
                times = -(-shape[dim] // tile.shape[dim])
                tile = torch.cat([tile] * times, dim).narrow(dim, 0, shape[dim])
        parameters[name] = tile
    return parameters


def logits_through(
    generator: GraphHyperNetwork, network: Sample, images: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return the logits of ``network`` with predicted parameters, BatchNorm on batch statistics."""
    tiles = generator(
        network.architecture,
        network.names,
        features=network.features,
        noise=None if noise is None else noise.__getitem__,
    )
    logits: Tensor = functional_call(network.model, full_parameters(network, tiles), (images,))
    return logits


@torch.no_grad()
def initialised_resnet20(
    generator: GraphHyperNetwork,
    space: Space,
    calibration: Split,
    *,
    seed: int | None = None,
    noise_scale: float = 1.0,
) -> nn.Module:
    """Build the held-out ResNet-20 with predicted parameters, its BatchNorm calibrated on ``calibration``."""
    from torch_geninit.calibrate import recalibrate_bn_

    network = space.get(Spec((3, 3, 3), (16, 32, 64), "A"))
    model = resnet20(generator.classes).to(space.device)
    noise = None
    if seed is not None:
        draws = torch.Generator().manual_seed(seed)
        noise = noise_scale * torch.randn(
            len(network.architecture.nodes), generator.noise_width, generator=draws
        )
    tiles = generator(
        network.architecture,
        network.names,
        features=network.features,
        noise=None if noise is None else noise.to(space.device).__getitem__,
    )
    for name, parameter in model.named_parameters():
        Tile(tiles[name].cpu(), tuple(parameter.shape)).write_to(parameter)
    recalibrate_bn_(model, (images for images, _ in calibration.batches()))
    return model


class Average:
    """Exponential moving average of a generator's weights."""

    def __init__(self, generator: GraphHyperNetwork, decay: float = 0.999) -> None:
        self.generator = copy.deepcopy(generator)
        self.decay = decay

    @torch.no_grad()
    def update(self, generator: GraphHyperNetwork, step: int) -> None:
        # A short memory at first, or the random start would weigh in for a thousand steps.
        decay = min(self.decay, (step + 1) / (step + 10))
        mine, other = list(self.generator.parameters()), list(generator.parameters())
        torch._foreach_lerp_(mine, other, 1 - decay)


def train_ghn(
    data: str | Path,
    folder: str | Path,
    schedule: Schedule,
    *,
    noise: int = 0,
    diversity: float = 1.0,
    floor: float = -1.0,
    start: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    amp: bool = False,
    check_every: int = 1000,
) -> GraphHyperNetwork:
    """Train a generator on random residual networks, one network a step; returns the averaged weights.

    With ``noise`` > 0 each step makes two draws z, z' and the loss is::

        L = (CE(f_z) + CE(f_z')) / 2 + diversity * max(cos(f_z, f_z'), floor)

    on the flattened logits of the same batch (paper, section on noise GHN). ``start`` is a trained
    generator's file to warm-start from; see :func:`warm_start_`.
    """
    from tqdm.auto import tqdm

    run = Run(folder)
    train, validation = load(data, "train"), load(data, "validation")
    calibration = train.spread(2000)
    card = {"sizes": {**SIZES, "noise": noise}, "classes": list(train.classes), "trained": {}}
    torch.manual_seed(seed)
    generator = GraphHyperNetwork(card)
    if start is not None:
        warm_start_(generator, load_file(start))
    average = Average(generator)
    generator.to(device)
    average.generator.to(device)
    optimizer = torch.optim.AdamW(generator.parameters(), schedule.lr, betas=(0.9, 0.99), weight_decay=1e-5)
    space = Space(generator.classes, train.normalise(train.images[:1]), device)
    first = 0
    state = run.resume()
    if state is not None:
        generator.load_state_dict(state["generator"])
        average.generator.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    train = train.to(device)
    progress = tqdm(total=schedule.steps, initial=first, desc="hypernetwork", unit="step", mininterval=2)
    losses: list[float] = []
    batches = _batches(train, schedule.batch_size, seed, first)
    for step in range(first, schedule.steps):
        images, labels = next(batches)
        images = resize(images, schedule.resolution(step))
        network = space.get(sample(random.Random(f"{seed}/{step}")))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            if noise:
                shape = (2, len(network.architecture.nodes), noise)
                stream = noise_stream(seed, f"training step {step}")
                draws = torch.randn(shape, generator=stream).to(device)
                pair = [logits_through(generator, network, images, z).float() for z in draws]
                cross_entropy = sum(F.cross_entropy(f, labels) for f in pair) / 2
                cosine = F.cosine_similarity(pair[0].flatten(), pair[1].flatten(), dim=0)
                loss = cross_entropy + diversity * cosine.clamp(min=floor)
            else:
                loss = F.cross_entropy(logits_through(generator, network, images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 5.0)
        optimizer.step()
        average.update(generator, step)
        losses.append(loss.item())
        progress.update()
        if (step + 1) % 100 == 0:
            values: dict[str, Any] = {"step": step + 1, "loss": sum(losses[-100:]) / 100}
            if noise:
                values |= {"cosine": cosine.item()}
            progress.set_postfix(loss=f"{values['loss']:.3f}")
            if (step + 1) % check_every == 0 or step + 1 == schedule.steps:
                values |= check(average.generator, space, calibration, validation)
            run.log(**values)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == schedule.steps:
            run.save(
                {
                    "generator": generator.state_dict(),
                    "average": average.generator.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "card": {"sizes": dict(card["sizes"]), "classes": card["classes"]},
                }
            )
    progress.close()
    return average.generator


def _batches(train: Split, batch_size: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches from step ``first`` on, the same whether or not a run was interrupted before it."""
    epoch, position = divmod(first, len(train) // batch_size)
    while True:
        order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches = train.shuffled_batches(batch_size, order, augment="flip-crop")
        yield from islice(batches, position, None)
        epoch, position = epoch + 1, 0


def check(
    generator: GraphHyperNetwork, space: Space, calibration: Split, validation: Split
) -> dict[str, float]:
    """Measure the held-out ResNet-20 on validation images: without noise, and for a noise GHN two members."""
    result = {}
    members: list[Score] = []
    plain = score(initialised_resnet20(generator, space, calibration), validation)
    result["validation_accuracy"], result["validation_nll"] = plain
    if generator.noise_width:
        for seed in (0, 1):
            model = initialised_resnet20(generator, space, calibration, seed=seed)
            members.append(score(model, validation))
        result["member_accuracy"] = sum(m.accuracy for m in members) / len(members)
    return result


def warm_start_(generator: GraphHyperNetwork, trained: Mapping[str, Tensor]) -> None:
    """Copy trained weights; decoder columns that read noise are drawn from N(0, NOISE_START^2).

    Two equal draws are a stationary point of the diversity loss, so the start must be loud enough to leave
    it.
    """
    own = generator.state_dict()
    if set(own) != set(trained):
        raise ValueError(
            f"the start has other tensors: {sorted(set(own) ^ set(trained))[:5]}; "
            "expected a graph hypernetwork of the same sizes"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            value = trained[name]
            if tensor.shape != value.shape:
                tensor[:, : value.shape[1]] = value
                stream = noise_stream(0, name)
                fresh = torch.randn(tensor[:, value.shape[1] :].shape, generator=stream)
                tensor[:, value.shape[1] :] = NOISE_START * fresh
            else:
                tensor.copy_(value)


def parse_phases(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``"16x3000,32x5000"`` as ((16, 3000), (32, 5000))."""
    try:
        phases = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
        return tuple((resolution, amount) for resolution, amount in phases)
    except ValueError:
        raise ValueError(f"--phases {text!r}: expected RESOLUTIONxAMOUNT, comma separated") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the run; an interrupted one resumes")
    parser.add_argument(
        "--phases", default="16x3000,24x6000,32x5000", help="RESOLUTIONxSTEPS, comma separated"
    )
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--noise", type=int, default=0, help="noise values per node; 0 is a plain GHN")
    parser.add_argument("--diversity", type=float, default=1.0, help="weight of the cosine between draws")
    parser.add_argument(
        "--floor", type=float, default=-1.0, help="cosine between draws below which there is no pull apart"
    )
    parser.add_argument("--start", help="trained generator file to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--check-every", type=int, default=1000)


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train_ghn(
        arguments.data,
        arguments.run,
        Schedule(parse_phases(arguments.phases), arguments.lr, arguments.warmup, arguments.batch_size),
        noise=arguments.noise,
        diversity=arguments.diversity,
        floor=arguments.floor,
        start=arguments.start,
        seed=arguments.seed,
        device=arguments.device,
        amp=arguments.amp,
        check_every=arguments.check_every,
    )
