"""Transfer: records are cached and go on, the rate is chosen on validation alone, the test is read once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("tqdm")

from tests.support.colours import colours
from torch_geninit.training.__main__ import main
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import transfer, transfer_cases
from torch_geninit.training.evaluate.transfer_cases import Case, Course, Images, compare
from torch_geninit.training.networks.residual import resnet18
from torch_geninit.training.networks.vit import ViT
from torch_geninit.training.runs.checkpoint import Run

COURSE = Course(epochs=(1, 3), batch_size=8)
SMALL = {"resnet": resnet18(8), "vit": ViT(1, 16, 2, 8)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A prepared file of 48, 12 and 20 images of two classes, 16 x 16."""
    parts = {"train": colours(48), "validation": colours(12, 1), "test": colours(20, 2)}
    tensors = {}
    for name, split in parts.items():
        tensors |= {f"{name}.images": split.images, f"{name}.labels": split.labels}
    header = {"mean": "[0.3, 0.3, 0.3]", "std": "[0.2, 0.2, 0.2]", "classes": '["red", "blue"]'}
    save_file(tensors, str(tmp_path / "colours.safetensors"), metadata=header)
    return tmp_path / "colours.safetensors"


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_cases, "NETWORKS", SMALL)


@pytest.fixture
def case(file: Path, tmp_path: Path) -> Callable[..., Case]:
    def make(initialisation: str = "reference", network: str = "resnet", course: Course = COURSE) -> Case:
        return Case(Images(file, course), 1.0, network, initialisation, course, tmp_path / "run")

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """Trainings, in order, without training: validation says rate 0.1 after epoch 1 and 0.01 after 3."""
    found: list[tuple[str, float, int]] = []

    def train(self: Case, training: tuple[float, int]) -> dict[str, Any]:
        lr, seed = training
        found.append((self.initialisation, lr, seed))
        validation = {1: lr, 3: 1 - lr}
        for epoch in validation:
            self.weights(epoch, lr, seed).parent.mkdir(parents=True, exist_ok=True)
            save_file({"lr": torch.tensor(lr)}, str(self.weights(epoch, lr, seed)))
        return {**self._name(), "lr": lr, "seed": seed, "validation": validation}

    monkeypatch.setattr(Case, "train", train)
    return found


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Figures of the test images, in order; their values speak against what validation chose."""
    found: list[tuple[int, float, int]] = []

    def test(self: Case, figure: tuple[int, float, int]) -> dict[str, Any]:
        epoch, lr, seed = figure
        assert self.weights(epoch, lr, seed).exists()
        found.append(figure)
        return {
            **self._name(),
            "epoch": epoch,
            "lr": lr,
            "seed": seed,
            "test": (lr if epoch == 3 else 1 - lr),
        }

    monkeypatch.setattr(Case, "test", test)
    return found


def test_the_rate_is_chosen_on_validation_and_the_test_read_once(
    case: Callable[..., Case],
    trained: list[tuple[str, float, int]],
    tested: list[tuple[int, float, int]],
    tmp_path: Path,
) -> None:
    def run(seeds: range) -> list[dict[str, Any]]:
        return compare([case()], lambda _: (0.1, 0.01, 0.03), seeds)

    found = run(range(2))
    first = [("reference", lr, 0) for lr in (0.1, 0.01, 0.03)]
    assert trained == [*first, ("reference", 0.1, 1), ("reference", 0.01, 1)], "0.03 is best nowhere"
    assert tested == [(1, 0.1, 0), (1, 0.1, 1), (3, 0.01, 0), (3, 0.01, 1)]
    assert not list(tmp_path.rglob("*-after-*")), "trained weights are removed with the last figure"
    assert run(range(2)) == found
    assert len(trained) == 5 and len(tested) == 4, "nothing is trained or read twice"
    run(range(3))
    assert trained[5:] == [("reference", 0.1, 2), ("reference", 0.01, 2)]
    assert tested[4:] == [(1, 0.1, 2), (3, 0.01, 2)]


def test_other_settings_in_the_same_folder_are_refused(
    case: Callable[..., Case], trained: object, tested: object
) -> None:
    compare([case()], lambda _: (0.1,), [0])
    with pytest.raises(ValueError, match="holds records of other settings"):
        compare([case(course=replace(COURSE, batch_size=4))], lambda _: (0.1,), [0])
    compare(
        [case(course=replace(COURSE, untrusted="generate", token_weight_decay=0.1))], lambda _: (0.1,), [0]
    )
    with pytest.raises(ValueError, match="expected different names"):
        compare([case(), case()], lambda _: (0.1,), [0])


def test_what_can_not_be_served_is_told_and_left_out(
    case: Callable[..., Case], trained: list[tuple[str, float, int]], tested: object
) -> None:
    told: list[dict[str, Any]] = []
    cases = [case(), case("mimetic"), case("mimetic", "vit")]
    found = compare(cases, lambda _: (0.1,), [0], told=told.append)
    assert {(figure["network"], figure["initialisation"]) for figure in found} == {
        ("resnet", "reference"),
        ("vit", "mimetic"),
    }
    (left,) = told
    assert left["network"] == "resnet" and "expected a network with self-attention" in left["left out"]


def test_training_reads_no_test_images_and_ends_as_if_uninterrupted(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[str] = []
    load = transfer_cases.load

    def watched(path: Path, name: str) -> Split:
        read.append(name)
        return load(path, name)

    monkeypatch.setattr(transfer_cases, "load", watched)
    whole = case().train((0.05, 0))
    weights = case().weights(3, 0.05, 0).read_bytes()
    assert "test" not in read
    save, interrupted = Run.save, case()
    object.__setattr__(interrupted, "root", tmp_path / "again")

    def stop(self: Run, state: dict[str, Any]) -> None:
        save(self, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            interrupted.train((0.05, 0))
    resumed = interrupted.train((0.05, 0))
    assert resumed["validation"] == whole["validation"] and set(whole["validation"]) == {1, 3}
    assert interrupted.weights(3, 0.05, 0).read_bytes() == weights
    assert interrupted.test((3, 0.05, 0))["test"] > 0.8, "two colours are learned in 18 steps"
    assert read.count("test") == 1


def test_a_training_that_diverges_counts_as_chance(case: Callable[..., Case]) -> None:
    one = case()
    record = one.train((1e30, 0))
    assert record["validation"][3] == 0.5 and one.test((3, 1e30, 0))["test"] == 0.5


def test_recipes_of_convolutions_and_tokens() -> None:
    convolutions, tokens = (COURSE.recipe(spec, 0.1, 64) for spec in SMALL.values())
    assert (convolutions.optimizer, convolutions.weight_decay, convolutions.shift) == ("sgd", 5e-4, 8)
    assert (tokens.optimizer, tokens.weight_decay, tokens.momentum) == ("adamw", 0.05, 0.9)
    assert convolutions.epochs == tokens.epochs == 3


def test_a_share_goes_by_class_and_seed_and_images_are_limited_and_resized(file: Path) -> None:
    images = Images(file, replace(COURSE, most_images=10, image_size=8))
    assert len(images.validation) == 10 and images.test.images.shape == (10, 3, 8, 8)
    one, again, other = (images.train(0.1, seed) for seed in (0, 0, 1))
    assert one.labels.bincount().tolist() == [2, 2]  # a tenth of 24 each
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)
    assert len(images.train(1.0, 0)) == 10 and len(Images(file, COURSE).train(1.0, 0)) == 48


def test_the_command_prints_figures_and_a_table(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BY_FOLDER", {"resnet": "resnet"})
    monkeypatch.setattr(
        transfer, "BUDGETS", {"full": replace(transfer.BUDGETS["small"], networks=("resnet",))}
    )
    monkeypatch.setattr("torch_geninit.training.evaluate.transfer_table.NETWORKS", SMALL)
    command = f"transfer --data {file} --run {tmp_path / 'run'} --initialisations reference lsuv"
    main([*command.split(), *"--shares 1 --epochs 1 --seeds 2 --batch-size 8".split()])
    lines = capsys.readouterr().out.splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(figure["initialisation"], figure["seed"]) for figure in figures] == [
        ("reference", 0),
        ("reference", 1),
        ("lsuv", 0),
        ("lsuv", 1),
    ]
    assert any("| colours | 1 | resnet | 1 | lsuv | 0.03 | 2 |" in line for line in lines)
