"""Kinds of values on the command line."""

from __future__ import annotations

import argparse
import math
import re
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


def phases(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``"16x3000,32x5000"`` as ((16, 3000), (32, 5000)): resolutions, and steps or epochs."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(
            f"expected RESOLUTIONxAMOUNT, comma separated, both positive, as 16x3,32x5, got {text!r}"
        )
    parts = (part.split("x") for part in text.split(","))
    return tuple((int(resolution), int(amount)) for resolution, amount in parts)


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def finite(text: str) -> float:
    """Read a number that is neither infinite nor nan."""
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def generator_name(text: str) -> str:
    """Read what users will pass as ``pretrained=``, and what its file is called."""
    if not re.fullmatch(r"[a-z0-9]+([_-][a-z0-9]+)*", text) or text == "auto":
        raise argparse.ArgumentTypeError(
            f"expected small letters, digits and single '-' or '_' between, not 'auto', got {text!r}"
        )
    return text


def share(text: str) -> float:
    """Read a share, above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share, above 0 and at most 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
