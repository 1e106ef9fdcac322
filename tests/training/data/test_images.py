"""Prepared image files: a fixed split, what is refused, what is read of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from PIL import Image

from torch_geninit.training.data import images
from torch_geninit.training.data.images import Split, flip_and_crop, load, prepare


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    images.prepare("digits", target, size=8)
    return target


@pytest.mark.parametrize("limit", [1, 7, 128])
def test_a_limit_reads_evenly_spaced_images(digits: Path, limit: int) -> None:
    whole, some = images.load(digits, "train"), images.load(digits, "train", limit)
    spread = whole.spread(limit)
    assert torch.equal(some.images, spread.images) and torch.equal(some.labels, spread.labels)


def test_a_limit_beyond_the_split_reads_it_all(digits: Path) -> None:
    whole, some = images.load(digits, "test"), images.load(digits, "test", 10_000)
    assert torch.equal(some.images, whole.images) and torch.equal(some.labels, whole.labels)


def test_split_is_complete_disjoint_and_always_the_same(prepared: Path, tmp_path: Path) -> None:
    train, validation, test = (load(prepared, name) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (54, 6, 10)
    rows = torch.cat([train.images, validation.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 60
    prepare(prepared.parent, tmp_path / "again.safetensors", size=16)
    assert torch.equal(load(tmp_path / "again.safetensors", "validation").images, validation.images)


def test_some_classes_are_kept_and_numbered_anew(prepared: Path, tmp_path: Path) -> None:
    prepare(prepared.parent, tmp_path / "red.safetensors", size=16, classes=slice(1, 2))
    red = load(tmp_path / "red.safetensors", "test")
    assert red.classes == ("red",) and red.labels.unique().tolist() == [0]
    whole = load(prepared, "test")
    assert torch.equal(red.images, whole.images[whole.labels == 1])
    with pytest.raises(ValueError, match="no class left of 5:9"):
        prepare(prepared.parent, tmp_path / "none.safetensors", size=16, classes=slice(5, 9))


def test_digits_are_prepared_without_a_download(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    prepare("digits", tmp_path / "digits.safetensors", size=8)
    parts = [load(tmp_path / "digits.safetensors", name) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 1797 and len(parts[2]) == 500
    # Every tenth image still has every class.
    assert len(parts[0].spread(len(parts[0]) // 10).labels.unique()) == 10
    bunch = datasets.load_digits()
    known = {
        (tuple((pixels * 255 / 16).round().astype(int).flatten()), label)
        for pixels, label in zip(bunch.images, bunch.target, strict=True)
    }
    for split in parts:
        for image, label in zip(split.images[:20], split.labels[:20], strict=True):
            assert any(
                label == other
                and max(abs(a - b) for a, b in zip(pixels, image[0].flatten().tolist(), strict=True)) <= 1
                for pixels, other in known
            )


def test_flip_and_crop_moves_pixels_and_nothing_else() -> None:
    images = torch.arange(6 * 6).view(1, 1, 6, 6).to(torch.uint8).repeat(64, 3, 1, 1)
    moved = flip_and_crop(images, torch.Generator().manual_seed(0), padding=2)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    known = {
        tuple(
            torch.nn.functional.pad(source.float(), (2,) * 4, mode="reflect")[0, y : y + 6, x : x + 6]
            .flatten()
            .tolist()
        )
        for source in (images[0], images[0].flip(2))
        for y in range(5)
        for x in range(5)
    }
    assert {tuple(image[0].flatten().float().tolist()) for image in moved} <= known


@pytest.mark.parametrize("count, value, message", [(4, 0, "at least 10"), (12, 7, "channel R, G, B")])
def test_images_to_learn_nothing_from_are_refused(
    tmp_path: Path, count: int, value: int, message: str
) -> None:
    for part in ("train", "test"):
        folder = tmp_path / part / "grey"
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (value,) * 3).save(folder / f"{index}.png")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, tmp_path / "data.safetensors", size=8)
    assert not (tmp_path / "data.safetensors").exists()


def test_a_share_of_each_class_is_drawn_by_the_generator_in_the_order_of_the_split() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3)
    pixels = torch.arange(63, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    split = Split(pixels, labels, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    one, again, other = (split.stratified(0.1, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert one.labels.bincount().tolist() == [4, 2, 1]  # never none of a class
    numbers = one.images[:, 0, 0, 0].tolist()
    assert numbers == sorted(set(numbers)) and torch.equal(labels[numbers], one.labels)
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)


def test_resized_images_average_and_keep_labels() -> None:
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 200
    split = Split(
        checks.to(torch.uint8).expand(5, 3, 8, 8), torch.arange(5), (0.5,) * 3, (0.5,) * 3, ("a",) * 5
    )
    small = split.resized(4)
    assert small.images.shape == (5, 3, 4, 4) and small.images.dtype == torch.uint8
    assert (small.images[:, :, 1:3, 1:3].float() - 100).abs().max() <= 1
    assert torch.equal(small.labels, split.labels) and split.resized(8) is split
