"""What tests of training share: a prepared file of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.colours import colours
from torch_geninit.training.data.images import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared file made from a folder of PNG images."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 60), ("test", 10)):
        data = colours(count, seed=count)
        for index in range(count):
            folder = root / part / data.classes[int(data.labels[index])]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = data.images[index].permute(1, 2, 0).numpy()
            image.fromarray(pixels).save(folder / f"{index:03}.png")
    prepare(root, root / "data.safetensors", size=16)
    return root / "data.safetensors"
