"""Kinds of values on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``low`` up, for ``type=`` of an argument."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} up, got {text!r}")
        return value

    return read
