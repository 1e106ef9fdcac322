"""Images as one uint8 tensor file: prepared once, loaded in milliseconds, augmented in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

Augment = Literal["none", "flip", "flip-crop"]

SPLIT_SEED = 0
VALIDATION_SIZE = 5_000


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 with labels (N,) int64, and the normalisation that belongs to them."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, images: Tensor) -> Tensor:
        """Scale uint8 images to zero mean and unit variance by channel, in channels_last float32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        scaled = (images.float() / 255 - mean) / std
        return scaled.contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.mean, self.std, self.classes)

    def subset(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices], self.mean, self.std, self.classes)

    def spread(self, count: int) -> Split:
        """Return ``count`` images evenly spaced over the split, or all if there are fewer."""
        count = min(count, len(self))
        return self.subset(torch.arange(count) * len(self) // count)

    def stratified(self, share: float, generator: torch.Generator) -> Split:
        """Return a random ``share`` of each class, at least one image of each, in the same order."""
        chosen = []
        for label in self.labels.unique().tolist():
            own = (self.labels == label).nonzero()[:, 0].cpu()
            count = max(1, round(share * len(own)))
            chosen.append(own[torch.randperm(len(own), generator=generator)[:count]])
        return self.subset(torch.cat(chosen).sort().values.to(self.labels.device))

    def resized(self, size: int) -> Split:
        """Return the images at ``size`` x ``size`` pixels, averaging what is thrown away."""
        if self.images.shape[-1] == size:
            return self
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
            for part in self.images.split(500)
        ]
        images = torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
        return Split(images, self.labels, self.mean, self.std, self.classes)

    def batches(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised batches in order, the last one possibly smaller."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self.normalise(self.images[start:stop]), self.labels[start:stop]

    def check_batch(self, batch_size: int) -> None:
        """Raise a ValueError if the images don't fill a batch."""
        if len(self) < batch_size:
            raise ValueError(
                f"{len(self)} training images don't fill a batch of {batch_size}; take smaller batches"
            )

    def shuffled_batches(
        self, batch_size: int, generator: torch.Generator, *, augment: Augment, shift: int = 4
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of normalised batches in random order; an incomplete last batch is dropped.

        ``"flip-crop"`` shifts each image by up to ``shift`` pixels in each direction.
        """
        order = torch.randperm(len(self), generator=generator).to(self.images.device)
        for start in range(0, len(self) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            images = self.images[chosen]
            if augment != "none":
                images = flip_and_crop(images, generator, padding=shift * (augment == "flip-crop"))
            yield self.normalise(images), self.labels[chosen]


def flip_and_crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Mirror each image with probability 1/2, shift it by up to ``padding`` pixels, reflect at borders."""
    count, _, height, width = images.shape
    device = images.device
    flip = torch.rand(count, generator=generator).to(device) < 0.5
    top = torch.randint(0, 2 * padding + 1, (count,), generator=generator).to(device)
    left = torch.randint(0, 2 * padding + 1, (count,), generator=generator).to(device)
    # Reflection is written as an index so that uint8 images need no float round trip.
    rows = _reflect(top[:, None] + torch.arange(height, device=device) - padding, height)
    columns = _reflect(left[:, None] + torch.arange(width, device=device) - padding, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    sample = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * size - 2 - index, index)


def prepare(
    source: str | Path,
    target: str | Path,
    *,
    size: int = 32,
    classes: slice = slice(None),
    download: bool = False,
    root: str | Path = "data",
) -> None:
    """Write ``source`` as one uint8 tensor file with a fixed train / validation / test split.

    ``source`` is a folder with ``train/<class>/*`` and ``test/<class>/*`` images, ``"digits"`` for
    scikit-learn's, or the name of a torchvision data set with a ``train=`` switch (``"CIFAR10"``), looked for
    in the folder ``root``. ``classes`` picks some of the classes, in their order.

    Raises:
        ValueError: if there are too few images, or a channel of theirs is constant.
    """
    if Path(source).is_dir():
        train, test, names = _read_image_folder(Path(source), size)
    elif str(source) == "digits":
        train, test, names = _read_digits(size)
    else:
        train, test, names = _read_torchvision(str(source), size, download, root)
    train, test, names = _pick(train, classes, len(names)), _pick(test, classes, len(names)), names[classes]
    if not names:
        raise ValueError(f"{source}: no class left of {classes.start}:{classes.stop}; expected some of them")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(train[1]), generator=generator)
    held_out = min(VALIDATION_SIZE, len(order) // 10)
    validation, rest = order[:held_out].sort().values, order[held_out:].sort().values
    if not held_out or not len(test[1]):
        raise ValueError(
            f"{source}: expected at least 10 training images, a tenth of them for validation, and 1 test "
            f"image, got {len(order)} and {len(test[1])}"
        )
    pixels = train[0][rest].float() / 255
    constant = [name for name, std in zip("RGB", pixels.std((0, 2, 3)), strict=True) if std < 1e-4]
    if constant:
        raise ValueError(
            f"{source}: expected images that differ, got the same value everywhere in channel "
            f"{', '.join(constant)} of the training images"
        )
    metadata = {
        "classes": json.dumps(names),
        "mean": json.dumps([round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()]),
        "std": json.dumps([round(v, 4) for v in pixels.std((0, 2, 3)).tolist()]),
    }
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "train.images": train[0][rest],
            "train.labels": train[1][rest],
            "validation.images": train[0][validation],
            "validation.labels": train[1][validation],
            "test.images": test[0],
            "test.labels": test[1],
        },
        str(target),
        metadata=metadata,
    )


def load(path: str | Path, name: str, limit: int | None = None) -> Split:
    """Load the split ``name`` ("train", "validation" or "test") of a prepared file.

    With ``limit`` only that many images are read, evenly spaced over the split.

    Raises:
        ValueError: if there is no such file, or it is not a prepared one.
    """
    try:
        return _load(path, name, limit)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a file that `python -m torch_geninit.training prepare` wrote, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _load(path: str | Path, name: str, limit: int | None) -> Split:
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
        labels = file.get_tensor(f"{name}.labels")
        if limit is None or limit >= len(labels):
            images = file.get_tensor(f"{name}.images")
        else:
            chosen = torch.arange(limit) * len(labels) // limit
            stored = file.get_slice(f"{name}.images")
            images = torch.cat([stored[index : index + 1] for index in chosen.tolist()])
            labels = labels[chosen]
        return Split(
            images=images,
            labels=labels,
            mean=tuple(json.loads(header["mean"])),
            std=tuple(json.loads(header["std"])),
            classes=tuple(json.loads(header["classes"])),
        )


def _read_image_folder(
    root: Path, size: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    from torchvision.datasets import ImageFolder

    train, test = ImageFolder(str(root / "train")), ImageFolder(str(root / "test"))
    if train.classes != test.classes:
        raise ValueError(
            f"{root}: train and test have different classes "
            f"({len(train.classes)} and {len(test.classes)}); expected the same folders in both"
        )
    return _stack(train, size), _stack(test, size), train.classes


def _read_digits(size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Read scikit-learn's 1,797 digits of 8x8 pixels, enlarged, in three equal channels; 500 are the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    pixels = F.interpolate(images, (size, size), mode="bilinear").repeat(1, 3, 1, 1)
    pixels = (pixels * 255).round().to(torch.uint8)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order[:500], order[500:]
    # By class, as images of a folder are: evenly spaced ones then have all classes.
    train = train[labels[train].argsort(stable=True)]
    return (pixels[train], labels[train]), (pixels[test], labels[test]), [str(n) for n in range(10)]


def _pick(part: tuple[Tensor, Tensor], classes: slice, count: int) -> tuple[Tensor, Tensor]:
    """Keep the images of some classes, renumbered from 0."""
    chosen = torch.arange(count)[classes]
    images, labels = part
    kept = torch.isin(labels, chosen)
    return images[kept], torch.searchsorted(chosen, labels[kept])


def _read_torchvision(
    name: str, size: int, download: bool, root: str | Path
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if kind is None:
        raise ValueError(
            f"{name!r} is neither a folder nor a torchvision data set; expected a folder with "
            "train/<class> and test/<class>, or a name such as CIFAR10"
        )
    train, test = (kind(str(root), train=part, download=download) for part in (True, False))
    return _stack(train, size), _stack(test, size), list(train.classes)


def _stack(dataset, size: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    from torchvision.transforms.functional import pil_to_tensor
    from tqdm.auto import tqdm

    images, labels = [], []
    for image, label in tqdm(dataset, desc="reading images", unit="img"):
        pixels = pil_to_tensor(image.convert("RGB"))
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels[None].float(), (size, size), mode="bilinear", antialias=True)[0]
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        images.append(pixels)
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)
