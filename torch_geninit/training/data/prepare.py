"""Prepare images once: one uint8 tensor file with the fixed split."""

from __future__ import annotations

import argparse

from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.images import prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="folder with train/<class> and test/<class>, digits, or a torchvision name"
    )
    parser.add_argument("target", help="file to write (.safetensors)")
    parser.add_argument("--size", type=at_least(1), default=32)
    parser.add_argument(
        "--classes", type=_span, help="FIRST:LAST, some of the classes, LAST excluded; all by default"
    )
    parser.add_argument("--download", action="store_true", help="let torchvision download")


def main(arguments: argparse.Namespace) -> None:
    prepare(
        arguments.source,
        arguments.target,
        size=arguments.size,
        classes=arguments.classes or slice(None),
        download=arguments.download,
    )


def _span(text: str) -> slice:
    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIRST:LAST, such as 25:50")
    return slice(int(first or 0), int(last) if last else None)
