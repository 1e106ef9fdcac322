"""Command line of the training code: ``python -m torch_geninit.training COMMAND --help``."""

from __future__ import annotations

import argparse
import importlib
import os

import torch

from torch_geninit.graph.tracer.trace import TraceError
from torch_geninit.training.arguments import at_least

COMMANDS = {
    "prepare": ("data.prepare", "turn an image folder or a torchvision data set into one tensor file"),
    "zoo": ("loops.zoo", "train many networks of one architecture"),
    "vae": ("loops.vae", "train slice VAEs on a zoo"),
    "ghn": ("loops.ghn", "train a graph hypernetwork; with --noise and --start, a noise GHN from it"),
    "evaluate": ("evaluate.protocol", "measure a generator by the protocol"),
    "search-space": (
        "evaluate.search_space",
        "measure a generator over unseen networks, and what it expected of them",
    ),
    "well-known": (
        "evaluate.well_known",
        "measure a hypernetwork on networks that everyone knows, before training",
    ),
    "initialisations": (
        "evaluate.initialisations",
        "train ResNet-20 from several initialisations, generated or not, with several seeds",
    ),
    "ensembles": ("evaluate.ensembles", "measure ensembles of stored networks, on corrupted images too"),
    "diversity-tradeoff": (
        "evaluate.diversity_tradeoff",
        "measure how noise GHNs trade accuracy for differences, over noise scales",
    ),
    "first-epoch": (
        "evaluate.first_epoch",
        "train unseen networks for an epoch, generated and with He initialisation",
    ),
    "transfer": (
        "evaluate.transfer",
        "train well-known networks on other images, from He initialisation, generators and controls",
    ),
    "recipes": (
        "evaluate.recipes",
        "train ResNet-20 for an epoch of ordinary recipes, over scales of kernels and classifier",
    ),
    "report": ("report.command", "make the pages of the comparison from records; measure what is missing"),
    "coverage": ("report.coverage", "try a generator on the models of torchvision, timm or transformers"),
    "benchmark": ("report.benchmark", "time the initialisers beside torch's own initialisation"),
    "export": (
        "release.export",
        "write a trained generator as a safetensors file with manifest record and model card",
    ),
    "reexport": ("release.reexport", "export a hypernetwork that ships again, with another probe"),
    "publish": ("release.publish", "upload an export to the Hugging Face Hub and pin it in the manifest"),
}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, but only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m torch_geninit.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        code = importlib.import_module(f"torch_geninit.training.{module}")
        command = commands.add_parser(
            name,
            help=text,
            description=code.__doc__,
            formatter_class=Formatter,
        )
        code.add_arguments(command)
        command.add_argument("--threads", type=at_least(1), help="torch threads")
        command.add_argument("--traceback", action="store_true", help="show where an error was raised")
        command.set_defaults(run_command=code.main)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    # Every shape of a layer takes some; the usual 1,024 don't hold those of many networks. Read at first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "30000")
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    try:
        parsed.run_command(parsed)
    except (ValueError, OSError, TraceError) as error:  # what the caller can mend, mostly
        if parsed.traceback:
            raise
        parser.exit(1, f"{type(error).__name__}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parsed.command}: interrupted\n")


if __name__ == "__main__":
    main()
