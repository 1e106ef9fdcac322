"""The first epoch of ordinary recipes: what is scaled, what is trained once, what reaches the mark."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_geninit.training.__main__ import main
from torch_geninit.training.evaluate import recipes
from torch_geninit.training.evaluate.recipes import HE, Scales, Setting, Step, initialised, step, summary
from torch_geninit.training.networks.resnet import ResNet

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def setting(tiny_file: Callable[[str], Path]) -> Setting:
    return Setting(str(tiny_file("ghn")))


def test_scales_change_sizes_and_no_answer(setting: Setting) -> None:
    plain, scaled = (initialised(Scales(*each), 0, 10, setting) for each in ((1, 1), (4, 0.25)))
    assert isinstance(plain, ResNet) and isinstance(scaled, ResNet)
    torch.testing.assert_close(scaled.conv1.weight, 4 * plain.conv1.weight)
    torch.testing.assert_close(scaled.bn1.weight, plain.bn1.weight)
    with torch.no_grad():
        # In training mode the norms divide by what the kernels were multiplied with.
        torch.testing.assert_close(scaled.train()(IMAGES), 0.25 * plain.train()(IMAGES), rtol=1e-2, atol=1e-3)


def test_he_is_drawn_with_the_seed(setting: Setting) -> None:
    first, again, other = (initialised(HE, seed, 10, setting) for seed in (0, 0, 1))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_a_classifier_that_was_not_predicted_is_not_scaled(setting: Setting) -> None:
    with pytest.raises(ValueError, match="the classifier is not generated"):
        initialised(Scales(1, 0.5), 0, 7, setting)


def test_only_kernels_of_hypernetworks_are_scaled(tiny_file: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="expected a graph hypernetwork"):
        initialised(Scales(2, 1), 0, 10, Setting(str(tiny_file("vae"))))


@pytest.mark.parametrize(
    ("after", "he", "reached"), [(0.78, 0.5, True), (0.76, 0.5, False), (0.79, 0.8, False)]
)
def test_the_mark_is_little_loss_and_a_lead_over_he(after: float, he: float, reached: bool) -> None:
    records = [
        {"initialisation": name, "recipe": "sgd-0.1", "seed": seed, "before": before, "after": value + shift}
        for name, before, value in (("he", 0.1, he), ("scaled", 0.8, after))
        for seed, shift in enumerate((-0.01, 0.01))
    ]
    _, row = summary(records)
    assert row["reached"] is reached and row["after"] == pytest.approx(after)


def test_recipes_are_read() -> None:
    assert step("adamw-1e-3") == Step("adamw", 1e-3) and str(step("sgd-0.1")) == "sgd-0.1"
    for text in ("muon-0.1", "sgd", "sgd-fast", "0.1"):
        with pytest.raises(argparse.ArgumentTypeError):
            step(text)


def test_what_is_recorded_is_not_trained_again(
    prepared: Path,
    tmp_path: Path,
    setting: Setting,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["recipes", "--data", str(prepared), "--run", str(tmp_path / "run"), "--pretrained"]
    command += [setting.pretrained, "--recipes", "adam-1e-3", "--kernel-scales", "2", "--batch-size", "16"]
    main(command)
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["initialisation"] for row in rows] == ["he", "kernels-2-classifier-1"]
    assert all(0 <= row["after"] <= 1 and row["recipe"] == "adam-0.001" for row in rows)
    monkeypatch.setattr(recipes, "train_classifier", lambda *_, **__: pytest.fail("trained again"))
    main(command)
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit):  # another setting is another folder's
        main([*command, "--images", "20"])
