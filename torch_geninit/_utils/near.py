"""The name that was meant, where one was mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LIKE = 0.5
"""Least likeness (difflib's ratio): one wrong letter in a word of three."""


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return "did you mean 'conv1.weight'?" for the nearest of ``names``; empty if none is near."""
    close = get_close_matches(str(name).lower(), list(names), n=1, cutoff=LIKE)
    return f"did you mean {close[0]!r}?" if close else ""
