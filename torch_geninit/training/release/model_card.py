"""A generator's page: its model card in the Hub's format, made from its manifest record alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from torch_geninit._utils.tables import Table
from torch_geninit.hub.manifest import Record

PAPER = "https://arxiv.org/abs/2310.16695"


@dataclass(frozen=True)
class Kind:
    """What every generator of a kind has in common.

    Attributes:
        call: how it is used; the generator's name is added.
        summary: what it is, in a sentence or two.
        use: what it is meant for.
        limits: what it can't do, a sentence or two each.
    """

    call: str
    summary: str
    use: str
    limits: tuple[str, ...]


_START = (
    "The weights are a start for training, not a trained model. BatchNorm's running statistics are those of "
    "the images in the file: before evaluating an untrained model on others call `geninit.recalibrate_bn_`."
)
_START_AT_CHANCE = (
    "The weights are a start for training, not a trained model. BatchNorm's running statistics are not "
    "predicted: before evaluating an untrained model call `geninit.recalibrate_bn_`."
)
_UNLIKE = (
    "A network that is not surely better than chance on the images in the file keeps its initialisation, "
    "with a warning. "
    "`print(geninit.plan(model))` tells beforehand."
)
_IMAGES = (
    "Only images like the training data were seen. Others may work, as may other sizes: measure before you "
    "rely on it."
)

KINDS = {
    "vae": Kind(
        "vae_(model)",
        "Variational autoencoders that draw convolution kernels slice by slice, one for each layer.",
        "Initial kernels for the convolutions of any network, before ordinary training.",
        (
            "It fills convolutions of the kernel sizes that it was trained on. Biases, norms and linear "
            "layers keep their values.",
            "Each layer is drawn without regard to the others. No large gain is to be expected: see the "
            "numbers.",
            "The weights are a start for training, not a trained model.",
        ),
    ),
    "ghn": Kind(
        "ghn_(model)",
        "A graph hypernetwork: it reads a network's architecture and predicts all its weights.",
        "Initial weights for networks like those of training, before ordinary training.",
        (_UNLIKE, _START, _IMAGES),
    ),
    "noise-ghn": Kind(
        "noise_ghn_(model, seed=0)",
        "A graph hypernetwork with noise: every seed gives another member of an ensemble. Members of odd "
        "seeds have mirrored kernels if it was exported with `--mirror`.",
        "Initial weights for the members of an ensemble, before ordinary training. Use consecutive seeds.",
        (_UNLIKE, _START, _IMAGES),
    ),
    "published-ghn": Kind(
        "ghn_(model)",
        "A graph hypernetwork published by others, converted.",
        "What the original was published for: initial weights, before ordinary training or fine-tuning.",
        (
            "It predicts for any network, also where the result is worse than random weights. Compare.",
            _START_AT_CHANCE,
            _IMAGES,
        ),
    ),
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
    kind = KINDS[record.kind]
    call = kind.call.replace(")", f', pretrained="{record.name}")')
    limits = "\n".join(f"- {limit}" for limit in kind.limits)
    size = " x ".join(map(str, record.input["size"]))
    means, stds = (", ".join(f"{value:g}" for value in record.input[key]) for key in ("mean", "std"))
    content = f"""---
{data.to_yaml()}
---

# {record.name}

{kind.summary}

```python
import torch_geninit as geninit

geninit.{call}
```

## Intended use

{kind.use}

| | |
|---|---|
| networks | {_cell(record.architectures)} |
| images | {size}, pixels scaled to 0..1, then minus {means}, divided by {stds} (by channel) |
| learning rate | {_cell(record.learning_rate)} |
| method | {PAPER} |

## Limits

{limits}

## Numbers

Accuracies are shares of 1.

{_numbers(record.numbers)}

## How to repeat it

```bash
{record.command}
```

| | |
|---|---|
| training data | {_cell(record.training_data)} |
| seed | {record.seed} |
| duration of the last stage | {record.duration_seconds / 60:.0f} minutes |
| cost | {record.core_hours:g} core-hours, with all that led to it |
| machine | {_cell(record.machine)} |
| file | `{record.filename}`, {record.size / 1e6:.2f} MB, sha256 `{record.sha256}` |
| licence | {record.licence} |
"""
    return str(ModelCard(content))


def _numbers(numbers: Mapping[str, Any]) -> str:
    """Lay out single numbers as one table, and each record of records as one of its own."""
    tables = {name: value for name, value in numbers.items() if _is_table(value)}
    single = {name: value for name, value in numbers.items() if name not in tables}
    rows = [(_words(name), value) for name, value in _rows(single)]
    first = Table(("measure", "value"), rows, numbers=(1,)).markdown()
    return "\n\n".join([first, *(_table(name, records) for name, records in tables.items())])


def _rows(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}, ")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(f"{item:.4g}" for item in value)
        else:
            yield prefix + name, f"{value:.4g}"


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
    rows = [(row, *(f"{value:.4g}" for value in record.values())) for row, record in records.items()]
    header = (_words(name), *map(_words, columns))
    return Table(header, rows, numbers=range(1, len(header))).markdown()


def _words(name: str) -> str:
    """Return a number's name as a table shows it."""
    words = name.replace("_", " ").split(" ")
    return " ".join("He" if word == "he" else word for word in words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
