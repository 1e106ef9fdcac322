"""Train a graph hypernetwork through the networks it initialises; on one process or under torchrun."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor

import torch_geninit as geninit
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training.arguments import at_least, finite, phases, positive
from torch_geninit.training.data.images import load
from torch_geninit.training.loops.ghn_curriculum import Curriculum, Schedule
from torch_geninit.training.loops.ghn_learner import Learner
from torch_geninit.training.loops.ghn_loss import Diversity, Objective
from torch_geninit.training.loops.ghn_validation import check
from torch_geninit.training.loops.warm_start import SIZES, sizes_from, warm_start_
from torch_geninit.training.networks.search_space import DRAWN, WEIGHTS, Pool, Space, SpaceOptions, weights
from torch_geninit.training.runs import fingerprint
from torch_geninit.training.runs.checkpoint import Run
from torch_geninit.training.runs.distributed import World

LOG_EVERY = 100
"""Steps between lines of the metrics."""

SAVE_EVERY = 500
"""Steps between checkpoints: a few minutes on two cores."""

CALIBRATION_IMAGES = 2000
"""Training images that BatchNorm is calibrated on before a measurement."""


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
    space, diversity, world = space or SpaceOptions(), diversity or Diversity(), World.join(device)
    if schedule.networks % world.size:
        raise ValueError(f"{schedule.networks} networks a step can't be shared by {world.size} ranks evenly")
    train, validation = load(data, "train"), load(data, "validation")
    train.check_batch(schedule.batch_size)
    run = Run(folder)
    if world.leads:
        run.claim()
    generator, config = _new_generator(
        train.classes, start, {**(sizes or {}), "noise": noise}, diversity, seed
    )
    generator.to(device)
    objective = Objective(generator, clip=schedule.clip, diversity=diversity, decay=decay, amp=amp)
    learner = Learner(generator, world.wrap(objective), schedule.lr)
    networks = Pool(Space(generator.classes, train.normalise(train.images[:1]), device), space, seed=seed)
    described = {
        "card": config,
        "space": {**asdict(space), "seed": seed},
        "source": {
            "data": fingerprint.of_file(data),
            "start": None if start is None else fingerprint.of_generator(str(start)),
        },
        "settings": {**asdict(schedule), **asdict(diversity), "decay": decay, "amp": amp},
    }
    own, first = json.loads(json.dumps(described)), 0
    if (state := run.resume()) is not None:
        _same_run(run, state, own)
        learner.load_state_dict(state)
        first = state["step"]
    curriculum = Curriculum(schedule, train.to(device), networks, noise, diversity, world, seed)
    with _Progress(schedule, first, shown=world.leads) as progress:
        for step, batch in enumerate(curriculum.batches(first), first):
            parts = learner.step(step, batch, schedule.lr_at(step))
            progress.update(parts)
            done, last = step + 1, step + 1 == schedule.steps
            if world.leads and (last or done % LOG_EVERY == 0):
                values = {"step": done, **progress.summary(parts)}
                if last or done % check_every == 0:
                    calibration = train.spread(CALIBRATION_IMAGES)
                    values |= check(learner.average.generator, networks.space, space, calibration, validation)
                run.log(**values)
            if world.leads and (last or done % SAVE_EVERY == 0):
                run.save({**learner.state_dict(), "step": done, **own})
    return learner.average.generator


def _new_generator(
    classes: Sequence[str],
    start: str | Path | None,
    sizes: Mapping[str, int],
    diversity: Diversity,
    seed: int,
) -> tuple[GraphHyperNetwork, dict[str, Any]]:
    """Build the generator that training begins with, random or from ``start``, and what a run says of it."""
    trained = None if start is None else geninit.load(start)
    config: dict[str, Any] = {"sizes": sizes_from(trained, sizes), "classes": list(classes)}
    if diversity.shared:
        config["shared_noise"] = True
    torch.manual_seed(seed)
    generator = GraphHyperNetwork({**config, "trained": {}})
    if isinstance(trained, GraphHyperNetwork):
        warm_start_(generator, trained)
    return generator, config


class _Progress:
    """Progress bar of a run, and the losses since the last line of its metrics."""

    def __init__(self, schedule: Schedule, first: int, *, shown: bool) -> None:
        from tqdm.auto import tqdm

        self.schedule, self.losses = schedule, list[float]()
        self.bar = tqdm(
            total=schedule.steps * schedule.networks,
            initial=first * schedule.networks,
            desc="hypernetwork",
            unit="network",
            mininterval=2,
            disable=not shown,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, parts: Mapping[str, Tensor]) -> None:
        """Count a step."""
        self.losses += parts["cross_entropy"].tolist()
        self.bar.update(self.schedule.networks)

    def summary(self, parts: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the median loss since the last summary, with the cosine of this step's draws."""
        values = {"loss": statistics.median(self.losses)}
        self.losses.clear()
        if "cosine" in parts:
            values["cosine"] = parts["cosine"].mean().item()
        rate = (self.bar.format_dict["rate"] or 0.0) * self.schedule.batch_size
        self.bar.set_postfix(loss=f"{values['loss']:.3f}", images_per_second=f"{rate:.0f}")
        return values


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
    parser.set_defaults(threads=1)  # more cores are for more processes, see docs/guide/training.md


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
