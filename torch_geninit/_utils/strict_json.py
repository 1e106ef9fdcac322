"""JSON from anywhere, read strictly and at bounded cost."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any


def parse(text: bytes | str) -> Any:
    """Parse JSON strictly: UTF-8, no key twice in an object, no NaN or Infinity, bounded depth.

    Raises:
        ValueError: saying what is wrong.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key[:100]!r} appears twice")
        result[key] = value
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value
