"""Training: a fixed split, runs that resume where they stopped, generators that learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("tqdm")
pytest.importorskip("torchmetrics")

from PIL import Image

from tests.conftest import ghn_card
from torch_geninit.hub import file
from torch_geninit.training.data.images import Split, flip_and_crop, load, prepare
from torch_geninit.training.loops import ghn, ghn_learner, warm_start
from torch_geninit.training.loops.classifier import KernelOptimizer, Phase, Recipe, score, train_classifier
from torch_geninit.training.loops.ghn_loss import Diversity
from torch_geninit.training.networks import search_space
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.resnet import ResNet
from torch_geninit.training.runs.checkpoint import Run


def colours(count: int, seed: int = 0, size: int = 16) -> Split:
    """Images of two easily told classes: more red, more blue."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, size, size), generator=stream, dtype=torch.uint8)
    images[labels == 0, 0] += 100
    images[labels == 1, 2] += 100
    return Split(images, labels, (0.3,) * 3, (0.2,) * 3, ("red", "blue"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared file made from a folder of PNG images."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 60), ("test", 10)):
        data = colours(count, seed=count)
        for index in range(count):
            folder = root / part / data.classes[int(data.labels[index])]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = data.images[index].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
    prepare(root, root / "data.safetensors", size=16)
    return root / "data.safetensors"


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


def test_interrupted_classifier_ends_as_the_uninterrupted(tmp_path: Path) -> None:
    data = colours(48)
    recipe = Recipe([Phase(8, 2), Phase(16, 2)], lr=0.05, batch_size=16, optimizer="muon")

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return ResNet((1, 1), (4, 8), 2)

    def stop(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    whole = train_classifier(fresh(), data, recipe, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(fresh(), data, recipe, seed=1, run=Run(tmp_path), after_epoch=stop)
    resumed = train_classifier(fresh(), data, recipe, seed=1, run=Run(tmp_path))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]


def test_classifier_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResNet((1, 1), (4, 8), 2)
    train_classifier(model, colours(96), Recipe([Phase(16, 6)], lr=0.05, batch_size=16), seed=0)
    assert score(model, colours(50, seed=9)).accuracy > 0.9


@pytest.fixture()
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "width": 16,
        "rounds": 1,
        "hidden": 16,
        "mix": 8,
        "rank": 8,
        "head_rank": 2,
        "channels": 16,
        "kernel": 3,
    }
    monkeypatch.setattr(warm_start, "SIZES", {**warm_start.SIZES, **sizes})
    monkeypatch.setattr(search_space, "sample", lambda *_: Spec("basic", (1, 1), (4, 8)))
    # The held-out network is not of interest here and costs the most.
    monkeypatch.setattr(ghn, "check", lambda *_, **__: {})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("noise", [0, 2])
def test_interrupted_hypernetwork_ends_as_the_uninterrupted(
    prepared: Path, tmp_path: Path, noise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghn, "SAVE_EVERY", 2)
    schedule = ghn.Schedule(((16, 7),), warmup=2, batch_size=16)
    whole = ghn.train_ghn(prepared, tmp_path / "whole", schedule, noise=noise)
    step = ghn_learner.Average.update

    def stop(self: ghn_learner.Average, generator: ghn.GraphHyperNetwork, number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        step(self, generator, number)

    monkeypatch.setattr(ghn_learner.Average, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        ghn.train_ghn(prepared, tmp_path / "halves", schedule, noise=noise)
    monkeypatch.setattr(ghn_learner.Average, "update", step)
    resumed = ghn.train_ghn(prepared, tmp_path / "halves", schedule, noise=noise)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.usefixtures("small")
def test_hypernetwork_learns_and_noise_starts_from_it(prepared: Path, tmp_path: Path) -> None:
    schedule = ghn.Schedule(((16, 100),), lr=5e-3, warmup=5, batch_size=16)
    trained = ghn.train_ghn(prepared, tmp_path / "plain", schedule)
    lines = (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < 0.6  # chance is log 2
    complete = {**ghn_card(), **{name: trained.card[name] for name in ("sizes", "classes")}}
    exported = ghn.GraphHyperNetwork(complete)
    exported.load_state_dict(trained.state_dict())
    file.write(exported, tmp_path / "plain.safetensors", torch.float32)
    noisy = ghn.train_ghn(
        prepared,
        tmp_path / "noise",
        ghn.Schedule(((16, 1),), lr=0.0, batch_size=16),
        noise=2,
        start=tmp_path / "plain.safetensors",
    )
    with_noise, without = noisy.state_dict(), trained.state_dict()
    widened = [name for name in without if with_noise[name].shape != without[name].shape]
    assert widened == ["decoder.trunk.0.weight"]


def test_muon_leaves_depthwise_kernels_to_sgd() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5, groups=8))
    dense, depthwise = (layer.weight.detach().clone() for layer in model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [layer.weight.grad.clone() for layer in model]
    optimizer = KernelOptimizer(
        model, Recipe([Phase(8, 1)], lr=0.02, momentum=0.0, weight_decay=0.0, optimizer="muon")
    )
    optimizer.step()
    torch.testing.assert_close(model[1].weight, depthwise - 0.1 * gradients[1])
    assert not torch.allclose(model[0].weight, dense - 0.1 * gradients[0])


@pytest.mark.usefixtures("small")
def test_shared_noise_is_kept_in_the_card(prepared: Path, tmp_path: Path) -> None:
    schedule = ghn.Schedule(((16, 1),), lr=0.0, batch_size=16)
    for shared in (False, True):
        folder = tmp_path / str(shared)
        trained = ghn.train_ghn(prepared, folder, schedule, noise=2, diversity=Diversity(shared=shared))
        state = Run(folder).resume()
        assert state is not None and state["card"].get("shared_noise", False) is shared
        assert trained.shared_noise is shared


@pytest.mark.usefixtures("small")
def test_a_run_goes_on_as_itself_alone(prepared: Path, tmp_path: Path) -> None:
    """An export describes the networks of the whole run by what the last checkpoint says."""
    schedule = ghn.Schedule(((16, 1),), lr=0.0, batch_size=16, warmup=0)
    ghn.train_ghn(prepared, tmp_path, schedule, seed=1)
    longer = ghn.Schedule(((16, 2),), lr=0.0, batch_size=16)
    with pytest.raises(ValueError, match="another space: expected seed 2, found 1"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=2)
    with pytest.raises(ValueError, match="another card: expected sizes"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=1, noise=2)
    other = tmp_path / "other.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(prepared).items()}
    tensors["train.images"][0] += 1
    with safe_open(prepared, "pt") as file:
        save_file(tensors, other, file.metadata())
    with pytest.raises(ValueError, match="another source: expected data"):
        ghn.train_ghn(other, tmp_path, longer, seed=1)
    with pytest.warns(UserWarning, match=r"goes on from step 1 with phases .* -> .*warmup 0 -> 200"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=1)
    state = Run(tmp_path).resume()
    assert state is not None and state["step"] == 2


@pytest.mark.usefixtures("small")
def test_the_last_step_is_logged_and_measured(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghn, "check", lambda *_, **__: {"accuracy": 0.5})
    schedule = ghn.Schedule(((16, 3),), lr=0.0, batch_size=16)
    ghn.train_ghn(prepared, tmp_path, schedule, check_every=2)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3 and json.loads(line)["accuracy"] == 0.5


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


def test_images_that_do_not_fill_a_batch_are_refused() -> None:
    recipe = Recipe([Phase(8, 1)], batch_size=64)
    with pytest.raises(ValueError, match="48 training images don't fill a batch of 64"):
        train_classifier(ResNet((1, 1), (4, 8), 2), colours(48), recipe, seed=0)
