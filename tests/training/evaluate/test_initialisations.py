"""ResNet-20 from several initialisations: what each is, what is kept on disk, what the summary pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

pytest.importorskip("torchvision")
pytest.importorskip("tqdm")

import torch_geninit as geninit
from torch_geninit.training.data.images import Split
from torch_geninit.training.data.kernels import zoo_networks
from torch_geninit.training.evaluate import initialisations
from torch_geninit.training.networks.resnet import he_, resnet20
from torch_geninit.training.runs.checkpoint import Run


@pytest.fixture
def enough(images: Split) -> Split:
    """Two batches of 32 images."""
    few = images.subset(torch.arange(32))
    return Split(few.images.repeat(2, 1, 1, 1), few.labels.repeat(2), few.mean, few.std, few.classes)


@pytest.mark.parametrize("kind", ["vae", "ghn", "noise-ghn"])
def test_a_generator_is_used_by_its_own_method(kind: str, tiny_file: Callable[[str], Path]) -> None:
    one, again, other = (initialisations.initialised(str(tiny_file(kind)), seed, 10) for seed in (0, 0, 1))
    kernel = "layer1.0.conv1.weight"
    assert torch.equal(one.get_parameter(kernel), again.get_parameter(kernel))
    # One plain GHN has one result.
    assert torch.equal(one.get_parameter(kernel), other.get_parameter(kernel)) == (kind == "ghn")


def test_without_noise_every_seed_gives_the_same(tiny_file: Callable[[str], Path]) -> None:
    file = str(tiny_file("noise-ghn"))
    one, other = (initialisations.initialised(file, seed, 10, noise_scale=0.0) for seed in (0, 1))
    assert torch.equal(one.conv1.weight, other.conv1.weight)


def test_what_is_not_generated_is_drawn_from_he(tiny_file: Callable[[str], Path]) -> None:
    torch.manual_seed(3)
    he = he_(resnet20(10))
    kept = initialisations.initialised(str(tiny_file("ghn")), 3, 10, head="keep")
    assert torch.equal(kept.get_parameter("fc.weight"), he.get_parameter("fc.weight"))
    assert torch.equal(
        initialisations.initialised("he", 3, 10).get_parameter("conv1.weight"), he.conv1.weight
    )


def test_a_comparison_that_goes_on_trains_nothing_twice(
    enough: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = initialisations.Course(epochs=1, batch_size=32, calibrate=32)

    def run() -> list[dict[str, object]]:
        return list(initialisations.compare(["he"], [0.01, 0.1], [4, 5], course, (enough,) * 3, tmp_path))

    first = run()
    best = max(first[:2], key=lambda record: record["validation"][-1])["lr"]
    assert [(record["lr"], record["seed"]) for record in first] == [(0.01, 4), (0.1, 4), (best, 5)]
    # The test images are read at the chosen rate only.
    assert ["test" in record for record in first] == [best == 0.01, best == 0.1, True]
    assert all(len(record["validation"]) == 2 for record in first)  # before, and after the epoch
    weights = load_file(tmp_path / "he" / f"lr{best:g}" / "5.safetensors")
    assert weights.keys() == resnet20(10).state_dict().keys()
    # The folder of the chosen rate is a zoo of these seeds and no others.
    assert zoo_networks(tmp_path / "he" / f"lr{best:g}") == ("4", "5")
    monkeypatch.setattr(initialisations, "train_classifier", None)
    assert run() == json.loads(json.dumps(first))
    with pytest.raises(ValueError, match="records of other settings"):
        list(initialisations.compare(["he"], [0.1], [4], replace(course, epochs=2), (enough,) * 3, tmp_path))


def test_an_interrupted_training_counts_no_epoch_twice(
    enough: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = initialisations.Course(epochs=3, batch_size=32, calibrate=32)

    def run() -> list[dict[str, object]]:
        return list(initialisations.compare(["he"], [0.1], [0], course, (enough,) * 3, tmp_path))

    # Before the first checkpoint, and before the second.
    for allowed in (0, 1):
        save, saved = Run.save, []

        def interrupted(self: Run, state: dict[str, object]) -> None:
            if len(saved) == allowed:  # noqa: B023
                raise KeyboardInterrupt
            saved.append(state)  # noqa: B023
            save(self, state)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run()
    (record,) = run()
    assert len(record["validation"]) == 4


@pytest.mark.parametrize(
    ("rates", "order"),
    [
        # With one rate there is nothing to choose, so nothing to wait for.
        ([0.1], [("xavier", 0), ("he", 1), ("xavier", 1), ("he", 0)]),
        ([0.1, 0.2], [("he", 0), ("xavier", 0), ("xavier", 0), ("xavier", 1), ("he", 0), ("he", 1)]),
    ],
)
def test_nobody_is_waited_for_while_there_is_other_work(
    rates: list[float],
    order: list[tuple[str, int]],
    enough: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process has the first network; this one trains all else that it can before it waits."""
    trained, other = [], FileLock(tmp_path / "he" / "lr0.1" / ".0.json.lock")
    (tmp_path / "he" / "lr0.1").mkdir(parents=True)

    def train(name: str, lr: float, seed: int, *_: object) -> dict[str, object]:
        trained.append((name, seed))
        if (name, seed) == ("xavier", 1):
            other.release()
        accuracy = 0.3 - lr
        return {
            "initialisation": name,
            "lr": lr,
            "seed": seed,
            "validation": [0.1, accuracy],
            "test": accuracy,
        }

    monkeypatch.setattr(initialisations, "train_from", train)
    course = initialisations.Course(epochs=1)
    with other:
        found = list(
            initialisations.compare(["he", "xavier"], rates, [0, 1], course, (enough,) * 3, tmp_path)
        )
    assert trained == order
    best = [(record["initialisation"], record["seed"]) for record in found if record["lr"] == 0.1]
    assert best == [("he", 0), ("he", 1), ("xavier", 0), ("xavier", 1)]


def test_initialisations_are_told_apart(enough: Split, tmp_path: Path) -> None:
    course = initialisations.Course(epochs=1)
    same = ["a/my.safetensors", "b/my.safetensors"]
    with pytest.raises(ValueError, match="expected different names"):
        next(initialisations.compare(same, [0.1], [0], course, (enough,) * 3, tmp_path))


def test_a_generator_that_fills_nothing_is_refused() -> None:
    """The generator for networks over tokens has no 3x3 kernels."""
    with pytest.raises(geninit.StrictError):
        initialisations.initialised("ghn-cifar10-tokens", 0, 10)


def test_leads_are_paired_by_seed_at_each_one_s_own_rate() -> None:
    def record(name: str, lr: float, seed: int, end: float) -> dict[str, object]:
        return {"initialisation": name, "lr": lr, "seed": seed, "validation": [0.1, end], "test": end - 0.01}

    found = initialisations.summary(
        [
            record("he", 0.1, 0, 0.5),
            record("he", 0.2, 0, 0.4),
            record("he", 0.1, 1, 0.3),
            record("ghn", 0.1, 0, 0.1),
            record("ghn", 0.2, 0, 0.7),
            record("ghn", 0.2, 1, 0.45),
        ]
    )
    assert (found["he"]["lr"], found["ghn"]["lr"]) == (0.1, 0.2)
    mean, half = found["ghn"]["lead"][-1]
    # Leads 0.20 and 0.15; t(0.975) with one degree of freedom is 12.706.
    assert mean == pytest.approx(0.175) and half == pytest.approx(12.706 * 0.025, rel=1e-3)
    assert found["ghn"]["test_lead"][0] == pytest.approx(0.175)
    assert found["he"]["test_lead"][0] == 0
