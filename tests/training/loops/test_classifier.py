"""Training of a classifier: it learns, resumes where it stopped, and gives each kernel its optimizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")

from tests.support.colours import colours
from torch_geninit.training.loops.classifier import KernelOptimizer, Phase, Recipe, score, train_classifier
from torch_geninit.training.networks.resnet import ResNet
from torch_geninit.training.runs.checkpoint import Run


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


def test_images_that_do_not_fill_a_batch_are_refused() -> None:
    recipe = Recipe([Phase(8, 1)], batch_size=64)
    with pytest.raises(ValueError, match="48 training images don't fill a batch of 64"):
        train_classifier(ResNet((1, 1), (4, 8), 2), colours(48), recipe, seed=0)


def test_adamw_makes_its_first_step_by_the_law() -> None:
    """The first step goes by the gradient's sign, whatever its size; weights decay apart from it."""
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    layer.weight.grad = 7 * torch.randn_like(layer.weight)
    layer.bias.grad = torch.randn_like(layer.bias)
    recipe = Recipe([Phase(8, 1)], lr=0.01, weight_decay=0.1, optimizer="adamw")
    KernelOptimizer(layer, recipe).step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * layer.weight.grad.sign()
    torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-6, rtol=0)


def test_the_rate_rises_and_falls_or_stays() -> None:
    falling, constant = (Recipe([Phase(8, 1)], warmup=0.2, falling=falls) for falls in (True, False))
    progress = (0.1, 0.2, 0.6, 0.9)
    assert list(map(falling.share_of_lr, progress)) == pytest.approx([0.5, 1.0, 0.5, 0.125])
    assert list(map(constant.share_of_lr, progress)) == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_adam_steps_as_torch_s() -> None:
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    ours = KernelOptimizer(models[0], Recipe([Phase(8, 1)], lr=0.01, weight_decay=0.1, optimizer="adam"))
    torchs = torch.optim.Adam(models[1].parameters(), lr=0.01, weight_decay=0.1)
    for optimizer, model in ((ours, models[0]), (torchs, models[1])):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
