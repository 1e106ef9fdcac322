"""Write a trained generator as a safetensors file, with its record in the manifest and its model card."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.model import GraphHyperNetwork, kind
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.graph import vocabulary
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.hub import file, manifest
from torch_geninit.hub.config import FORMAT_VERSION
from torch_geninit.training.arguments import at_least, generator_name, positive
from torch_geninit.training.data.images import load
from torch_geninit.training.loops.fold import folded, narrowed, trimmed
from torch_geninit.training.networks.families import OVER_TOKENS
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.networks.search_space import Pool, Space, SpaceOptions
from torch_geninit.training.release import model_card
from torch_geninit.training.release import probe as probes
from torch_geninit.training.runs.checkpoint import Run

CARDS = manifest.PACKAGE.parent / "docs" / "generators"

COMPUTED = frozenset("name kind filename sha256 size repo_id revision licence vocabulary input".split())
"""Fields of a record that follow from the name and the file; an export is told the others."""
HOLDS = "; the file holds "
"""Between the training data in words and the probe in words."""

STATES_FROM = 200
"""Training networks whose hidden states decide what an export can do without."""


def export(
    generator: WeightGenerator,
    name: str,
    *,
    training_data: str,
    architectures: str,
    learning_rate: str,
    command: str,
    seed: int,
    duration_seconds: float,
    core_hours: float,
    machine: str,
    numbers: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> manifest.Record:
    """Write ``generator`` to ``pretrained/<name>.safetensors``, into the manifest, and its model card.

    The record is that of an unpublished generator, since its content is new; ``publish`` completes it.

    Args:
        generator: with a complete config.
        name: what users will pass as ``pretrained=``.
        training_data, architectures, learning_rate, command, seed, duration_seconds, core_hours, machine,
            numbers: fields of the manifest's record.
        dtype: of the tensors in the file.

    Returns:
        The manifest's new record.

    Raises:
        ValueError: if the config, a value or a field is not valid; nothing is then changed.
    """
    if "probe" in generator.config:
        training_data = f"{training_data.partition(HOLDS)[0]}{HOLDS}{generator.config['probe']}"
    path = manifest.SHIPPED / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    try:
        file.write(generator, scratch, dtype)
        # What was written is what users will read, so it is read once with the same checks.
        config = file.read(scratch).config
        content = scratch.read_bytes()
        record = manifest.Record(
            name=name,
            kind=config["kind"],
            filename=path.name,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            repo_id=None,
            revision=None,
            licence=config["licence"],
            training_data=training_data,
            architectures=architectures,
            learning_rate=learning_rate,
            vocabulary=config["vocabulary"],
            input=config["input"],
            numbers=dict(numbers),
            command=command,
            seed=seed,
            duration_seconds=round(duration_seconds, 1),
            core_hours=core_hours,
            machine=machine,
        )
        manifest.update(record)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    model_card.write(record, CARDS / f"{name}.md")
    return record


def from_run(
    folder: str | Path,
    data: str | Path,
    *,
    licence: str = "MIT",
    kernel_scale: float | None = None,
    mirror: bool = False,
    probe: int | None = None,
    probe_data: str | Path | None = None,
    probe_source: str | None = None,
) -> WeightGenerator:
    """Return the generator of a training run's last checkpoint, its config completed.

    Args:
        folder: of a run of ``training vae`` or ``training ghn``.
        data: prepared data file that it was trained on.
        licence: of the weights.
        kernel_scale: factor on the convolution kernels that only norms read, for a graph hypernetwork.
        mirror: let odd seeds of a noise hypernetwork draw mirrored kernels.
        probe: images in the probe of a hypernetwork, if not the usual number.
        probe_data: prepared data file of the probe's images, where those of training may not be given away.
        probe_source: what these are, in words.

    Raises:
        ValueError: if the folder holds no checkpoint, or none of a noise hypernetwork that ``mirror`` suits.
    """
    state = _stored(folder)["state"]
    images = load(data, "train")
    size = list(images.images.shape[1:])
    shared = {
        "format_version": FORMAT_VERSION,
        "vocabulary": {"version": vocabulary.VERSION, "graphs": reference_graphs(len(images.classes), size)},
        "input": {"size": size, "mean": list(images.mean), "std": list(images.std)},
        "classes": list(images.classes),
        "licence": licence,
    }
    config = {**state["card"], **shared}
    if mirror and not config["sizes"].get("noise"):
        raise ValueError(f"{folder} holds no noise hypernetwork, the one kind with mirrored members")
    if mirror and (over_tokens := sorted(set(state["space"]["families"]) & set(OVER_TOKENS))):
        raise ValueError(
            f"{folder} was trained on {', '.join(over_tokens)}, too, which mirrored kernels don't mirror: "
            "tokens have places. Train on other families, or export without --mirror"
        )
    if config.get("kind") == SliceVAEs.kind:
        vaes = SliceVAEs(config)
        vaes.load_state_dict(state["generator"])
        return vaes
    config["kind"] = "noise-ghn" if config["sizes"]["noise"] else "ghn"
    options = dict(state["space"])
    seed = options.pop("seed")
    space = Space(len(images.classes), torch.zeros(1, *size))
    pool = Pool(space, SpaceOptions(**options), seed)
    seen = [pool.member(number).architecture for number in range(pool.options.pool)]
    config["trained"] = {"kinds": kinds_in(seen)}
    if kernel_scale is not None:
        config["kernel_scale"] = kernel_scale
    if mirror:
        config["mirror"] = True
    hypernetwork = GraphHyperNetwork(config)
    hypernetwork.load_state_dict(state["average"])
    made = narrowed(folded(trimmed(hypernetwork, seen)), seen[:: max(1, len(seen) // STATES_FROM)])
    probes.add(made, images if probe_data is None else load(probe_data, "train"), probe, source=probe_source)
    return made


def _stored(folder: str | Path) -> dict[str, Any]:
    if not Path(folder).is_dir():  # which Run would make
        raise ValueError(f"there is no folder {folder}; expected the --run folder of a training command")
    stored = Run(folder).stored()
    if not isinstance(stored["state"], dict) or "card" not in stored["state"]:
        raise ValueError(f"{folder} is no run of `training vae` or `training ghn`; expected one of these")
    return stored


def _seed(state: Mapping[str, Any]) -> int:
    return int(state["space"]["seed"] if "space" in state else state["seed"])


def reference_graphs(classes: int, size: list[int]) -> dict[str, str]:
    """Return fingerprints of well-known networks as today's tracer and vocabulary see them.

    A generator's config keeps them, since a tracer that sees other graphs feeds it what it never saw.
    """
    example = torch.zeros(1, *size)
    shortcuts = {"resnet20": "A", "resnet20-projection": "B"}
    return {
        name: trace(resnet20(classes, shortcut), example).fingerprint  # type: ignore[arg-type]
        for name, shortcut in shortcuts.items()
    }


def kinds_in(graphs: Iterable[Architecture]) -> list[str]:
    """Name the kinds of parameters in these networks: what their hypernetwork can be asked for."""
    return sorted({kind(node, use) for graph in graphs for node in graph.nodes for use in node.parameters})


def measured_numbers(paths: Iterable[str | Path], run: Path | None = None) -> dict[str, Any]:
    """Merge JSON objects of numbers, and a run's report by layer if there is one.

    Raises:
        ValueError: if a file holds no object, or two have a key in common.
    """
    numbers: dict[str, Any] = {}
    for path in paths:
        read = json.loads(Path(path).read_text())
        if not isinstance(read, dict):
            raise ValueError(f"{path}: expected a JSON object of numbers, got {type(read).__name__}")
        if twice := sorted(set(numbers) & set(read)):
            raise ValueError(f"{path}: {twice[0]!r} stands in another file already")
        numbers |= read
    if run is not None and (run / "report.json").exists():
        records = json.loads((run / "report.json").read_text())
        numbers["by layer"] = {
            record["layer"]: {key: value for key, value in record.items() if key != "layer"}
            for record in records
        }
    return _rounded(numbers)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def this_machine() -> str:
    """Describe the machine in a line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} {platform.machine()} cores{gpu}, torch {torch.__version__}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="folder of a run of training vae or training ghn")
    parser.add_argument("--data", required=True, help="prepared data file that it was trained on")
    parser.add_argument(
        "--name", type=generator_name, required=True, help="what users will pass as pretrained="
    )
    parser.add_argument(
        "--output",
        help="only write NAME.safetensors into this folder, without manifest record and model card",
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--licence", default="MIT", help="SPDX identifier, of the weights")
    parser.add_argument("--kernel-scale", type=positive, help="factor on kernels that only norms read")
    parser.add_argument(
        "--mirror", action="store_true", help="odd seeds of a noise GHN draw kernels mirrored left to right"
    )
    parser.add_argument(
        "--probe", type=at_least(1), help="training images in the file; by default 160 for ten classes"
    )
    parser.add_argument(
        "--probe-data", help="prepared data file of the probe, where training images may not be given away"
    )
    parser.add_argument("--probe-source", help="what the images of --probe-data are, in words")
    record = parser.add_argument_group("for the manifest")
    record.add_argument("--training-data", help="what it was trained on, in words")
    record.add_argument("--architectures", help="that training saw, in words")
    record.add_argument("--learning-rate", help="advice on training from what it makes, in words")
    record.add_argument("--core-hours", type=positive, help="of everything that led here")
    record.add_argument("--command-line", help="the command that trains it again")
    record.add_argument("--machine", default=this_machine(), help="that trained it")
    record.add_argument("--numbers", nargs="*", default=[], help="JSON files of measured numbers")


def main(arguments: argparse.Namespace) -> None:
    dtype = getattr(torch, arguments.dtype)
    if (arguments.probe_data is None) != (arguments.probe_source is None):
        raise SystemExit("--probe-data and --probe-source belong together: images, and what they are")
    generator = from_run(
        arguments.run,
        arguments.data,
        licence=arguments.licence,
        kernel_scale=arguments.kernel_scale,
        mirror=arguments.mirror,
        probe=arguments.probe,
        probe_data=arguments.probe_data,
        probe_source=arguments.probe_source,
    )
    stored = _stored(arguments.run)
    if arguments.output is not None:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
        file.write(generator, Path(arguments.output) / f"{arguments.name}.safetensors", dtype)
        return
    needed = ("training-data", "architectures", "learning-rate", "core-hours", "command-line")
    missing = [f"--{name}" for name in needed if not _given(arguments, name)]
    if missing:
        raise SystemExit(f"the manifest needs {', '.join(missing)}; or pass --output for the file alone")
    export(
        generator,
        arguments.name,
        training_data=arguments.training_data,
        architectures=arguments.architectures,
        learning_rate=arguments.learning_rate,
        command=arguments.command_line,
        seed=_seed(stored["state"]),
        duration_seconds=stored["seconds"],
        core_hours=arguments.core_hours,
        machine=arguments.machine,
        numbers=measured_numbers(arguments.numbers, Path(arguments.run)),
        dtype=dtype,
    )


def _given(arguments: argparse.Namespace, name: str) -> bool:
    return getattr(arguments, name.replace("-", "_")) not in (None, "")
