"""Train a graph hypernetwork through the networks it initialises; on one process or under torchrun."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.rng import noise_stream
from torch_geninit.training.arguments import at_least, finite, phases, positive
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.loops.classifier import resize
from torch_geninit.training.loops.ghn_loss import Diversity, Objective
from torch_geninit.training.loops.ghn_validation import check
from torch_geninit.training.loops.warm_start import SIZES, sizes_from, warm_start_
from torch_geninit.training.networks.search_space import DRAWN, WEIGHTS, Pool, Space, SpaceOptions, weights
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.distributed import World

SAVE_EVERY = 500
"""Steps between checkpoints: a few minutes on two cores."""


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


class Average:
    """Exponential moving average of a generator's weights."""

    def __init__(self, generator: GraphHyperNetwork, decay: float = 0.999) -> None:
        self.generator = copy.deepcopy(generator)
        self.decay = decay

    @torch.no_grad()
    def update(self, generator: GraphHyperNetwork, step: int) -> None:
        # A short memory at first, or the random start would weigh in for a thousand steps.
        decay = min(self.decay, (step + 1) / (step + 10))
        mine: list[Tensor] = list(self.generator.parameters())
        other: list[Tensor] = list(generator.parameters())
        torch._foreach_lerp_(mine, other, 1 - decay)


def train_ghn(
    data: str | Path,
    folder: str | Path,
    schedule: Schedule,
    *,
    space: SpaceOptions | None = None,
    noise: int = 0,
    sizes: Mapping[str, int] | None = None,
    diversity: Diversity | None = None,
    decay: float = 0.0,
    start: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    amp: bool = False,
    check_every: int = 1000,
) -> GraphHyperNetwork:
    """Train a generator on random networks; returns the averaged weights.

    Every step sees ``schedule.networks`` networks, each with images of its own; under ``torchrun`` the ranks
    share them. ``noise`` > 0 trains a noise GHN, its draws kept apart by ``diversity``; ``decay`` keeps
    vectors and the classifier near their standard values (see :class:`Objective`); ``start`` is a trained
    generator, a name or a file, to warm-start from, see :func:`warm_start_`; ``sizes`` are
    those of the new generator that are not the start's or the usual ones.

    Raises:
        ValueError: if the ranks can't share a step's networks evenly, or ``folder`` holds a run with another
            data, start, space of networks, seed or kind of generator, or another process trains there.

    Warns:
        UserWarning: if a run goes on with another schedule, loss or ``amp``.
    """
    from tqdm.auto import tqdm

    space = space or SpaceOptions()
    world = World.join(device)
    if schedule.networks % world.size:
        raise ValueError(f"{schedule.networks} networks a step can't be shared by {world.size} ranks evenly")
    train, validation = load(data, "train"), load(data, "validation")
    train.check_batch(schedule.batch_size)
    run = Run(folder)
    if world.leads:
        run.claim()
    calibration = train.spread(2000)
    trained = None if start is None else geninit.load(start)
    sizes = sizes_from(trained, {**(sizes or {}), "noise": noise})
    classes = list(train.classes)
    diversity = diversity or Diversity()
    card = {"sizes": sizes, "classes": classes, **({"shared_noise": True} if diversity.shared else {})}
    torch.manual_seed(seed)
    generator = GraphHyperNetwork({**card, "trained": {}})
    if isinstance(trained, GraphHyperNetwork):
        warm_start_(generator, trained)
    generator.to(device)
    average = Average(generator)
    objective = world.wrap(
        Objective(generator, clip=schedule.clip, diversity=diversity, decay=decay, amp=amp)
    )
    optimizer = torch.optim.AdamW(
        generator.parameters(), schedule.lr, betas=(0.9, 0.99), weight_decay=1e-5, fused=True
    )
    networks = Pool(Space(generator.classes, train.normalise(train.images[:1]), device), space, seed=seed)
    first = 0
    state = run.resume()
    own = json.loads(
        json.dumps(
            {
                "card": card,
                "space": {**asdict(space), "seed": seed},
                "source": {
                    "data": fingerprint.of_file(data),
                    "start": None if start is None else fingerprint.of_generator(str(start)),
                },
                "settings": {
                    **asdict(schedule),
                    **asdict(diversity),
                    "decay": decay,
                    "amp": amp,
                },
            }
        )
    )
    if state is not None:
        _same_run(run, state, own)
        generator.load_state_dict(state["generator"])
        average.generator.load_state_dict(state["average"])
        state["optimizer"]["param_groups"][0]["fused"] = True  # checkpoints of older versions say None
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    train = train.to(device)
    progress = tqdm(
        total=schedule.steps * schedule.networks,
        initial=first * schedule.networks,
        desc="hypernetwork",
        unit="network",
        mininterval=2,
        disable=not world.leads,
    )
    losses: list[float] = []
    batches = _batches(train, schedule.batch_size, seed, first * schedule.networks)
    for step in range(first, schedule.steps):
        chosen, images, labels, draws = [], [], [], []
        for slot in range(schedule.networks):
            x, y = next(batches)
            if slot % world.size != world.rank:
                continue
            index = step * schedule.networks + slot
            chosen.append(networks.draw(index))
            images.append(resize(x, schedule.resolution(step)))
            labels.append(y)
            if noise:
                stream = noise_stream(seed, f"training network {index}")
                nodes = len(chosen[-1].architecture.nodes)
                draws.append(diversity.noise(nodes, noise, stream).to(device))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        loss, parts = objective(chosen, images, labels, draws or None)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 5.0)
        optimizer.step()
        average.update(generator, step)
        losses += parts["cross_entropy"].tolist()
        progress.update(schedule.networks)
        if not world.leads:
            continue
        if (step + 1) % 100 == 0 or step + 1 == schedule.steps:
            rate = progress.format_dict["rate"] or 0.0
            values: dict[str, Any] = {"step": step + 1, "loss": statistics.median(losses)}
            losses.clear()
            if noise:
                values |= {"cosine": parts["cosine"].mean().item()}
            progress.set_postfix(
                loss=f"{values['loss']:.3f}", images_per_second=f"{rate * schedule.batch_size:.0f}"
            )
            if (step + 1) % check_every == 0 or step + 1 == schedule.steps:
                values |= check(average.generator, networks.space, space, calibration, validation)
            run.log(**values)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == schedule.steps:
            run.save(
                {
                    "generator": generator.state_dict(),
                    "average": average.generator.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    **own,
                }
            )
    progress.close()
    return average.generator


def _same_run(run: Run, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to go on with what an export would then describe wrongly; tell what else is another."""
    for part, wanted in own.items():
        if part not in state:
            raise ValueError(
                f"{run.folder} holds a run that doesn't say its {part}, one of an older version: expected a "
                "run of this one. Choose another folder, or --start from its export"
            )
        found = json.loads(json.dumps(state[part]))
        # As text: the order of the families decides which networks are drawn.
        other = [n for n in {**wanted, **found} if json.dumps(wanted.get(n)) != json.dumps(found.get(n))]
        if other and part == "settings":
            changes = ", ".join(f"{name} {found.get(name)} -> {wanted.get(name)}" for name in other)
            warn(f"{run.folder} goes on from step {state['step']} with {changes}", stacklevel=3)
        elif other:
            raise ValueError(
                f"{run.folder} holds a run with another {part}: expected {other[0]} "
                f"{wanted.get(other[0])}, found {found.get(other[0])}; choose another folder, or --start "
                "from its export"
            )


def _batches(train: Split, batch_size: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches from step ``first`` on, the same whether or not a run was interrupted before it."""
    epoch, position = divmod(first, len(train) // batch_size)
    while True:
        order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches = train.shuffled_batches(batch_size, order, augment="flip-crop")
        yield from islice(batches, position, None)
        epoch, position = epoch + 1, 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="prepared data file")
    parser.add_argument("--run", required=True, help="folder of the run; an interrupted one resumes")
    parser.add_argument(
        "--phases", type=phases, default="16x3000,24x6000,32x5000", help="RESOLUTIONxSTEPS, comma separated"
    )
    parser.add_argument("--lr", type=positive, default=1.2e-3)
    parser.add_argument("--warmup", type=at_least(0), default=200)
    parser.add_argument(
        "--cooldown", type=at_least(1), help="last steps, over which the rate falls; all by default"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=128, help="images a network")
    parser.add_argument("--networks", type=at_least(1), default=1, help="networks a step, over all ranks")
    parser.add_argument(
        "--clip", type=positive, default=1.0, help="largest gradient of a network's parameters"
    )
    parser.add_argument("--families", nargs="+", default=list(WEIGHTS), choices=DRAWN, help="of networks")
    parser.add_argument("--pool", type=at_least(1), default=2000, help="different networks to train on")
    parser.add_argument("--most-macs", type=positive, default=60e6, help="multiplications of a network")
    parser.add_argument(
        "--noise", type=at_least(0), default=0, help="noise values per node; 0 is a plain GHN"
    )
    parser.add_argument("--diversity", type=finite, default=1.0, help="weight of the cosine between draws")
    parser.add_argument(
        "--floor", type=finite, default=-1.0, help="cosine between draws below which there is no pull apart"
    )
    parser.add_argument(
        "--diversity-on", default="logits", choices=("logits", "probabilities"), help="what the cosine is of"
    )
    parser.add_argument(
        "--shared-noise",
        action="store_true",
        help="the same noise for all nodes of a network, instead of each its own",
    )
    parser.add_argument(
        "--decay",
        type=finite,
        default=0.0,
        help="pull of biases and classifiers to 0 and normalisations' gains to 1",
    )
    parser.add_argument("--start", help="trained generator to start from: a name or a file")
    parser.add_argument(
        "--mix", type=at_least(1), help="channels that tell kernel positions apart, if not the start's"
    )
    parser.add_argument(
        "--sizes",
        type=size,
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="of the generator, where not the start's or the usual ones",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast of the networks")
    parser.add_argument("--check-every", type=at_least(1), default=1000)
    parser.set_defaults(threads=1)  # more cores are for more processes, see docs/training.md


def size(text: str) -> tuple[str, int]:
    """Read NAME=NUMBER, a size of a generator."""
    name, _, number = text.partition("=")
    if name not in SIZES or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, a name of {', '.join(SIZES)}; got {text!r}")
    return name, int(number)


def main(arguments: argparse.Namespace) -> None:
    train_ghn(
        arguments.data,
        arguments.run,
        Schedule(
            arguments.phases,
            lr=arguments.lr,
            warmup=arguments.warmup,
            cooldown=arguments.cooldown,
            batch_size=arguments.batch_size,
            networks=arguments.networks,
            clip=arguments.clip,
        ),
        space=SpaceOptions(weights(arguments.families), arguments.pool, int(arguments.most_macs)),
        noise=arguments.noise,
        sizes={**dict(arguments.sizes), **({"mix": arguments.mix} if arguments.mix else {})},
        diversity=Diversity(
            arguments.diversity, arguments.floor, arguments.diversity_on, arguments.shared_noise
        ),
        decay=arguments.decay,
        start=arguments.start,
        seed=arguments.seed,
        device=arguments.device,
        amp=arguments.amp,
        check_every=arguments.check_every,
    )
