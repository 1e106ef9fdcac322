"""The command that times the methods: what it measures, and that its page keeps what others wrote there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_geninit.training.report import benchmark, step


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.full
def test_sections_are_rewritten_and_the_rest_of_the_page_stays(
    tmp_path: Path, tiny_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "MODELS", ("resnet20",))
    monkeypatch.setattr(benchmark, "CHAINS", (2, 4))
    monkeypatch.setattr(step, "NETWORKS", 1)
    monkeypatch.setattr(step, "IMAGES", ((4, 3, 16, 16),))
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- chains -->\nold\n<!-- end of chains -->\n\nwords\n", encoding="utf-8")
    ghn, vae = str(tiny_file("ghn")), str(tiny_file("vae"))
    benchmark.main(options("--pretrained", ghn, "--vae", vae, "--repeats", "2", "--out", str(page)))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\n<!-- chains -->\n## Chains of layers") and "\nwords\n" in text
    assert "old" not in text
    assert "| 2 | 11 |" in text and "| 4 | 17 |" in text  # three operations a layer, five around them
    assert "| resnet20 | tiny-ghn | 0.3 M | 100.0 % |" in text and "| resnet20 | 99.2 % |" in text
    assert "7.1 G parameters on the meta device" in text
    assert "| ResNets | 4 of 16x16 |" in text and "| all ten families | 4 of 16x16 |" in text


def test_kaiming_fills_the_matrices_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = [name for name, _ in model.named_parameters()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    benchmark.kaiming_(model, names)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["0.weight"]
