"""A generator's model card in the Hub's format, made from its manifest record alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from torch_geninit.hub.manifest import Record

VERBS = {
    "vae": "vae_(model)",
    "ghn": "ghn_(model)",
    "noise-ghn": "noise_ghn_(model, seed=0)",
    "published-ghn": "ghn_(model)",
}
PAPER = "https://arxiv.org/abs/2310.16695"
SUMMARIES = {
    "vae": "Variational autoencoders that draw convolution kernels slice by slice, one for each layer.",
    "ghn": "A graph hypernetwork: reads a network's architecture and predicts all its weights.",
    "noise-ghn": "A graph hypernetwork with noise: every seed gives another member of an ensemble, an "
    "odd one with mirrored kernels if it was exported with `--mirror`.",
    "published-ghn": "A graph hypernetwork published by others, converted.",
}


def write(record: Record, path: str | Path) -> None:
    """Write the model card of ``record`` to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(record), encoding="utf-8")


def render(record: Record) -> str:
    """Return the card: YAML front matter for the Hub, then what a person wants to know."""
    data = ModelCardData(
        license=record.licence.lower(),
        library_name="torch-geninit",
        tags=["weight-initialization", "hypernetwork" if "ghn" in record.kind else "vae", "pytorch"],
    )
    call = VERBS[record.kind].replace(")", f', pretrained="{record.name}")')
    tables = {name: value for name, value in record.numbers.items() if _is_table(value)}
    single = {name: value for name, value in record.numbers.items() if name not in tables}
    numbers = "\n".join(f"| {name} | {value} |" for name, value in _rows(single))
    numbers += "".join(_table(name, rows) for name, rows in tables.items())
    size = " x ".join(map(str, record.input["size"]))
    normalisation = ", ".join(
        f"{m} ± {s}" for m, s in zip(record.input["mean"], record.input["std"], strict=True)
    )
    content = f"""---
{data.to_yaml()}
---

# {record.name}

{SUMMARIES[record.kind]}

```python
import torch_geninit as geninit

geninit.{call}
```

Made for images of size {size}, pixels scaled to 0..1 and then normalised (mean ± standard deviation by
channel: {normalisation}). Method: {PAPER}.

Learning rate: {record.learning_rate}

## What was measured

| measure | value |
|---|---|
{numbers}

## How it was made

| | |
|---|---|
| training data | {_cell(record.training_data)} |
| architectures seen | {_cell(record.architectures)} |
| command | `{_cell(record.command)}` |
| seed | {record.seed} |
| duration | {record.duration_seconds / 60:.0f} minutes |
| cost | {record.core_hours:g} core-hours, with all that led to it |
| machine | {_cell(record.machine)} |
| file | `{record.filename}`, {record.size / 1e6:.2f} MB, sha256 `{record.sha256}` |
| licence | {record.licence} |
"""
    return str(ModelCard(content))


def _rows(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}, ")
        elif isinstance(value, list):
            yield _cell(prefix + name), ", ".join(f"{item:.4g}" for item in value)
        else:
            yield _cell(prefix + name), f"{value:.4g}"


def _is_table(value: Any) -> bool:
    """Whether a number's value is records with the same entries, one for each layer or the like."""
    records = list(value.values()) if isinstance(value, dict) else []
    return bool(records) and all(
        isinstance(record, dict)
        and record.keys() == records[0].keys()
        and not any(isinstance(item, dict | list) for item in record.values())
        for record in records
    )


def _table(name: str, records: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(records.values())))
    lines = [
        f"| {_cell(name)} | " + " | ".join(map(_cell, columns)) + " |",
        "|---|" + "---:|" * len(columns),
        *(
            f"| {_cell(row)} | " + " | ".join(f"{value:.4g}" for value in record.values()) + " |"
            for row, record in records.items()
        ),
    ]
    return "\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
