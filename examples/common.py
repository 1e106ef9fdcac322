"""What the examples share: data, initialisations by name, tables and pictures."""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.training.arguments import at_least
from torch_geninit.training.data.images import Split, load, prepare
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.networks.resnet import he_, xavier_

INITS = ("default", "he", "xavier", "vae", "ghn", "noise-ghn")


def initialise(model: nn.Module, init: str, seed: int) -> nn.Module:
    """Initialise ``model`` in place by the name of a method.

    ``vae`` is the paper's mixture: slice VAEs for convolutions, Xavier for what they leave.
    """
    torch.manual_seed(seed)
    if init == "he":
        he_(model)
    elif init == "xavier":
        xavier_(model)
    elif init == "vae":
        xavier_(model)
        geninit.vae_(model, seed=seed)
    elif init == "ghn":
        geninit.ghn_(model)
    elif init == "noise-ghn":
        geninit.noise_ghn_(model, seed)
    elif init == "default":
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    else:
        raise ValueError(f"init {init!r}: expected one of {', '.join(INITS)}")
    return model


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images to train on."""
    parser.add_argument(
        "--data",
        default="CIFAR10",
        help="prepared .safetensors file, folder with train/<class> and test/<class>, or CIFAR10 to download",
    )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--cache",
        type=Path,
        default=home / "torch-geninit",
        help="folder for what is downloaded and prepared",
    )
    parser.add_argument(
        "--limit", type=at_least(1), help="use this many images of each split, and read no others"
    )


def open_data(data: str, cache: Path, limit: int | None = None) -> tuple[Split, Split, Split]:
    """Return train, validation and test images; end with a sentence if they can't be had.

    A folder or data set is prepared once, into a file in ``cache``.
    """
    path = Path(data)
    try:
        if path.suffix != ".safetensors":
            # Two folders of one name don't share a file.
            place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8] if path.is_dir() else ""
            path = cache / f"{'-'.join(filter(None, (path.name, place)))}.safetensors"
            if not path.exists():
                # Under another name at first: a run that is stopped leaves nothing that looks whole.
                scratch = path.with_suffix(".partial")
                prepare(data, scratch, download=True, root=cache / "downloads")
                scratch.replace(path)
        train, validation, test = (load(path, name, limit) for name in ("train", "validation", "test"))
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(
            f"--data {data}: the images can't be had ({error}); pass a prepared file or a folder of images, "
            "or run once with a network."
        ) from None
    return train, validation, test


def accuracy_before_training(model: nn.Module, train: Split, test: Split) -> float:
    """Measure accuracy without a training step, BatchNorm calibrated on 2,000 training images.

    The model's statistics are put back: training starts from what the initialiser left.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    geninit.recalibrate_bn_(model, train.spread(2000).batches())
    accuracy = (logits_of(model, test).argmax(1) == test.labels).float().mean().item()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return accuracy


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format mean +- sample standard deviation."""
    deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    target: Path,
    title: str,
    *,
    first_epoch: int = 1,
) -> None:
    """Draw accuracy (%) over epochs: mean of the runs of each name, shaded from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, runs in curves.items():
        epochs = range(first_epoch, first_epoch + len(runs[0]))
        columns = [[100 * value for value in column] for column in zip(*runs, strict=True)]
        (line,) = axes.plot(epochs, [statistics.mean(c) for c in columns], marker="o", label=name)
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_between(epochs, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
