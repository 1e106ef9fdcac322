"""Export a hypernetwork that ships again: the same weights, with another probe."""

from __future__ import annotations

import argparse
from dataclasses import fields

from torch_geninit.hub import file, manifest
from torch_geninit.training.arguments import at_least, generator_name
from torch_geninit.training.data.images import load
from torch_geninit.training.release import probe
from torch_geninit.training.release.export import COMPUTED, export

GUESSES = ("patterns", "ranges", "threshold")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=generator_name, help="of a hypernetwork that ships, in the manifest")
    parser.add_argument("--data", required=True, help="prepared data file that it was trained on")
    parser.add_argument("--images", type=at_least(1), help="how many; by default 160 for ten classes")
    parser.add_argument("--seed", type=int, default=probe.SEED, help="of the draw")


def main(arguments: argparse.Namespace) -> None:
    """Draw a probe, and write the file, its record and its model card again."""
    records = {record.name: record for record in manifest.read()}
    if arguments.name not in records:
        raise ValueError(f"the manifest has no generator {arguments.name!r}, only {', '.join(records)}")
    record = records[arguments.name]
    generator = file.read(manifest.SHIPPED / record.filename)
    # What trust was guessed by before there were probes.
    generator.config.pop("measured", None)
    generator.config["trained"] = {
        name: value for name, value in generator.config["trained"].items() if name not in GUESSES
    }
    probe.add(generator, load(arguments.data, "train"), arguments.images, arguments.seed)
    told = {field.name: getattr(record, field.name) for field in fields(record)}
    export(generator, record.name, **{name: value for name, value in told.items() if name not in COMPUTED})
