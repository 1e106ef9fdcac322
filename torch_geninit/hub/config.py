"""A generator's config: the JSON object in its file's header, which says what the generator is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch_geninit._utils.checks import check_text, expect
from torch_geninit.graph import vocabulary

FORMAT_VERSION = 1

KINDS: dict[str, tuple[str, str]] = {
    "vae": ("torch_geninit.generators.vae.model", "SliceVAEs"),
    "ghn": ("torch_geninit.generators.ghn.model", "GraphHyperNetwork"),
    "noise-ghn": ("torch_geninit.generators.ghn.model", "GraphHyperNetwork"),
    "published-ghn": ("torch_geninit.generators.published.model", "PublishedGHN"),
}
"""Kind of generator -> module and class, imported only when a file asks for it."""

MAX_SIZE = 1 << 20
"""Largest number among a config's sizes."""
MAX_SIZES = 10_000
"""Most values among a config's sizes."""


def check_config(config: Any) -> None:
    """Check the entries that every kind of generator has; ``trained`` is left to the generator's class.

    Raises:
        ValueError: naming the entry, what was expected and what was found.
    """
    expect(isinstance(config, dict), "the config", "an object", config)
    missing = [key for key in _CONFIG if key not in config]
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}: expected {', '.join(_CONFIG)}, as "
            "torch_geninit.training exports them; if the file was downloaded or edited, get it again"
        )
    version = config["format_version"]
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"it has format version {version}, this torch-geninit reads up to {FORMAT_VERSION}; "
            "upgrade torch-geninit"
        )
    for key, check in _CONFIG.items():
        check(f"the config's {key}", config[key])


def _check_format_version(what: str, value: Any) -> None:
    expect(type(value) is int and value >= 1, what, f"an integer from 1 to {FORMAT_VERSION}", value)


def _check_kind(what: str, value: Any) -> None:
    expect(isinstance(value, str) and value in KINDS, what, f"one of {', '.join(KINDS)}", value)


def check_vocabulary(what: str, value: Any) -> None:
    """Check the version of a vocabulary and the fingerprints of the reference graphs made with it."""
    expect(
        isinstance(value, dict) and set(value) == {"version", "graphs"},
        what,
        "exactly version and graphs",
        value,
    )
    version, graphs = value["version"], value["graphs"]
    expect(type(version) is int and version >= 1, f"{what}.version", "a positive integer", version)
    if version > vocabulary.VERSION:
        raise ValueError(
            f"{what}.version is {version}, this torch-geninit knows up to {vocabulary.VERSION}; "
            "upgrade torch-geninit"
        )
    hashes = isinstance(graphs, dict) and all(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{32}", digest) for digest in graphs.values()
    )
    expect(hashes, f"{what}.graphs", "names with fingerprints of 32 hex digits", graphs)


def check_input(what: str, value: Any) -> None:
    """Check the size and the normalisation of the images that the generated networks expect."""
    expect(
        isinstance(value, dict) and set(value) == {"size", "mean", "std"},
        what,
        "exactly size, mean and std",
        value,
    )
    size, mean, std = value["size"], value["mean"], value["std"]
    whole = (
        isinstance(size, list)
        and 1 <= len(size) <= 4
        and all(type(n) is int and 0 < n <= MAX_SIZE for n in size)
    )
    expect(whole, f"{what}.size", "one to four positive sizes", size)
    expect(_numbers(mean), f"{what}.mean", "finite numbers, one a channel", mean)
    expect(
        _numbers(std) and len(std) == len(mean) and min(std) > 0,
        f"{what}.std",
        "positive numbers, one a channel",
        std,
    )


def _numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 64
        and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    )


def _check_sizes(what: str, value: Any) -> None:
    expect(isinstance(value, dict), what, "an object", value)
    budget = MAX_SIZES
    pending = [(what, value)]
    while pending:
        where, item = pending.pop()
        budget -= 1
        expect(budget >= 0, what, f"at most {MAX_SIZES} values", "more")
        if isinstance(item, dict):
            pending.extend((f"{where}.{key}", part) for key, part in item.items())
        elif isinstance(item, list):
            pending.extend((where, part) for part in item)
        elif isinstance(item, (int, float)):
            expect(abs(item) <= MAX_SIZE, where, f"numbers up to {MAX_SIZE}", item)


def _check_trained(what: str, value: Any) -> None:
    expect(isinstance(value, dict), what, "an object", value)


def _check_classes(what: str, value: Any) -> None:
    named = (
        isinstance(value, list)
        and all(isinstance(item, str) for item in value)
        and len(set(value)) == len(value)
    )
    expect(named and len(value) > 0, what, "a list of different class names", value)


_CONFIG: dict[str, Callable[[str, Any], None]] = {
    "kind": _check_kind,
    "format_version": _check_format_version,
    "vocabulary": check_vocabulary,
    "sizes": _check_sizes,
    "trained": _check_trained,
    "input": check_input,
    "classes": _check_classes,
    "licence": check_text,
}
