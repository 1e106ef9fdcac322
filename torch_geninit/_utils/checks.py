"""Checks of what a file or a person wrote: the message says what was expected and what was found."""

from __future__ import annotations

import operator
from typing import Any


def expect(condition: bool, what: str, expected: str, value: Any) -> None:
    """Raise a ValueError that says what was expected and what was found, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{what}: expected {expected}, got {str(value)[:100]!r}")


def check_seed(seed: Any) -> int:
    """Return a seed as an int; a truth value is no number, though Python and torch count it as one."""
    truth = isinstance(seed, bool) or "bool" in str(getattr(seed, "dtype", ""))
    if truth or not hasattr(seed, "__index__"):
        raise TypeError(f"seed: expected an integer, got {repr(seed)[:100]}")
    return operator.index(seed)


def check_text(what: str, value: Any) -> None:
    """Check a field that is prose."""
    expect(isinstance(value, str) and 0 < len(value.strip()) <= 10_000, what, "a text", value)
