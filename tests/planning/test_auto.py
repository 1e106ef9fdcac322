"""pretrained="auto": the generator at hand that knows a model best fills it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.conftest import ghn_config
from tests.support.toy_generator import record
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.generators.trust.accuracy import NUMBERS
from torch_geninit.graph.architecture import Architecture
from torch_geninit.hub import manifest
from torch_geninit.hub.file import GeneratorFileError, write
from torch_geninit.parameters.named import list_parameters
from torch_geninit.planning.auto import select
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method
from torch_geninit.training.networks.blocks import Norm, Style
from torch_geninit.training.networks.families import Spec


class Small(nn.Sequential):
    """Two convolutions, one of which not every generator knows."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, kernel, padding=kernel // 2, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )


def generator(
    *,
    threshold: float = 1000.0,
    more: tuple[str, ...] = (),
    accuracy: float | None = None,
    noise: int = 0,
    less: tuple[str, ...] = (),
    width: float = 0.0,
) -> GraphHyperNetwork:
    """A hypernetwork that trusts itself up to ``threshold`` and expects ``accuracy`` of everything."""
    config = ghn_config(noise)
    config["trained"]["threshold"] = threshold
    config["trained"]["kinds"] = [kind for kind in (*config["trained"]["kinds"], *more) if kind not in less]
    config["trained"]["ranges"]["widest convolution (log2)"] = [0.0, width]
    if accuracy is not None:
        config["measured"] = measured(accuracy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphHyperNetwork(config).eval().requires_grad_(False)


def measured(accuracy: float) -> dict[str, Any]:
    """Two networks of one accuracy; an endless length makes it that of every network."""
    return {
        "networks": ["one", "two"],
        "points": [[0.0] * NUMBERS, [1.0] * NUMBERS],
        "accuracy": [accuracy] * 2,
        "spread": [1.0] * NUMBERS,
        "chance": 0.1,
        "length": 1e6,
        "signal": 1.0,
        "noise": 0.01,
        "quantile": 1.0,
        "images": "nothing",
        "least": 0.01,
    }


CANDIDATES = {
    "a distrustful generator is the last": (
        {"threshold": 0.0, "accuracy": 0.9},
        {"accuracy": 0.3},
    ),
    "of trusted ones, the higher expectation": ({"accuracy": 0.3}, {"accuracy": 0.9}),
    "of trusted ones, one that expects something": ({}, {"accuracy": 0.3}),
    "of distrustful ones with equal matrices, who can fill more": (
        {"threshold": 0.0, "less": ("batch_norm bias",)},
        {"threshold": 0.0},
    ),
    "of distrustful ones, the nearest, whatever it expects": (
        {"threshold": 0.0, "accuracy": 0.9, "width": 0.0},
        {"threshold": 0.0, "accuracy": 0.3, "width": 3.0},
    ),
    "of distrustful ones, who can fill more": (
        {"threshold": 0.0, "accuracy": 0.9},
        {"threshold": 0.0, "more": ("5x5 convolution",)},
    ),
}


def select_for(
    model: nn.Module, method: Method, candidates: Iterable[tuple[str, WeightGenerator]], **options: Any
) -> tuple[str, Architecture | None]:
    return select(model, method, candidates, PlanOptions(**options), list_parameters(model))


@pytest.mark.parametrize("which", CANDIDATES)
def test_the_best_is_selected_in_any_order(which: str) -> None:
    worse, better = CANDIDATES[which]
    kernel = 5 if "fill more" in which else 3
    pair = [("worse", generator(**worse)), ("better", generator(**better))]
    for order in permutations(pair):
        name, _ = select_for(Small(kernel), "ghn", order, example_inputs=torch.zeros(1, 3, 8, 8))
        assert name == "better"


def test_a_model_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    trace = GraphHyperNetwork.trace
    monkeypatch.setattr(GraphHyperNetwork, "trace", lambda *a: (calls.append(1), trace(*a))[1])
    candidates = [(str(index), generator()) for index in range(3)]
    _, graph = select_for(Small(), "ghn", candidates, example_inputs=torch.zeros(1, 3, 8, 8))
    assert len(calls) == 1
    _, same = select_for(Small(), "ghn", candidates, graph=graph)
    assert len(calls) == 1 and same is graph


def test_without_candidates_it_says_so() -> None:
    with pytest.raises(ValueError, match="no generator for noise_ghn_ is here"):
        select_for(Small(), "noise_ghn", [])


@pytest.fixture()
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two hypernetworks and one with noise."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    made = {
        "stranger": generator(threshold=0.0),
        "friend": generator(accuracy=0.8),
        "noisy": generator(noise=4),
    }
    records = []
    for name, one in made.items():
        path = folder / f"{name}.safetensors"
        write(one, path, torch.float32)
        content = path.read_bytes()
        about = {"name": name, "kind": one.config["kind"], "filename": path.name, "size": len(content)}
        records.append(record(content, **about, sha256=hashlib.sha256(content).hexdigest()))
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "generators": records}))
    monkeypatch.setattr(manifest, "SHIPPED", folder)
    monkeypatch.setattr(manifest, "locate", lambda: tmp_path / "manifest.json")
    return folder


@pytest.mark.usefixtures("shipped")
def test_the_verb_does_what_the_generator_chosen_by_name_does() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    torch.manual_seed(0)
    automatic, named = Small(), Small()
    geninit.ghn_(automatic, pretrained="auto", example_inputs=inputs, strict=True)
    geninit.ghn_(named, pretrained="friend", example_inputs=inputs, strict=True)
    for name, parameter in automatic.named_parameters():
        assert torch.equal(parameter, named.get_parameter(name)), name
    assert geninit.plan(automatic, pretrained="auto", example_inputs=inputs).source == "friend"
    assert geninit.expect(automatic, pretrained="auto", example_inputs=inputs).accuracy == pytest.approx(
        0.8, abs=0.01
    )


@pytest.mark.usefixtures("shipped")
def test_each_verb_selects_among_its_own_kind() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    made = geninit.plan(Small(), "noise_ghn", pretrained="auto", example_inputs=inputs)
    assert made.source == "noisy"


@pytest.mark.usefixtures("shipped")
def test_what_is_left_out_does_not_change_who_is_chosen() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    for part in ({"include": "0.*"}, {"exclude": ["0.*", "2.*"]}):
        assert geninit.plan(Small(), pretrained="auto", example_inputs=inputs, **part).source == "friend"


@pytest.mark.usefixtures("shipped")
def test_the_warning_names_who_was_chosen() -> None:
    model = Small(5)
    with pytest.warns(
        geninit.GenInitWarning, match=r"plan\(model, \"ghn\", pretrained='\w+'\)\.table\(\) lists"
    ):
        geninit.ghn_(model, pretrained="auto", example_inputs=torch.zeros(1, 3, 8, 8))


@pytest.mark.usefixtures("shipped")
def test_a_plan_knows_that_its_generator_was_chosen() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    for pretrained in ("auto", "friend"):
        made = geninit.plan(Small(), pretrained=pretrained, example_inputs=inputs)
        assert made.automatic is (pretrained == "auto")


def test_vae_has_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="chooses among hypernetworks"):
        geninit.vae_(Small(), pretrained="auto")


@pytest.mark.usefixtures("shipped")
def test_auto_has_no_revision() -> None:
    with pytest.raises(ValueError, match="can't be combined with pretrained='auto'"):
        geninit.plan(Small(), pretrained="auto", revision="0" * 40)


def test_a_missing_or_damaged_file_is_named_and_nothing_is_written(shipped: Path) -> None:
    model = Small()
    before = [parameter.clone() for parameter in model.parameters()]
    (shipped / "stranger.safetensors").write_bytes(b"damaged")
    with pytest.raises((geninit.HubError, GeneratorFileError), match="stranger"):
        geninit.ghn_(model, pretrained="auto", example_inputs=torch.zeros(1, 3, 8, 8))
    (shipped / "stranger.safetensors").unlink()
    with pytest.raises(geninit.HubError, match="stranger"):
        geninit.ghn_(model, pretrained="auto", example_inputs=torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_loading_auto_by_name_says_who_takes_it() -> None:
    with pytest.raises(geninit.HubError, match=r"initialisers take 'auto'.*plan\(model, pretrained='auto'\)"):
        geninit.load("auto")


# Of each family in its usual style, and of plain and bottleneck networks in every norm: simple networks are
# near those of other families, and a generator may expect much of what it was not trained on.
OWN = {
    **{(family, "batch"): "residual" for family in ("plain", "basic", "bottleneck", "preactivation")},
    **{
        (family, norm): "residual"
        for family in ("plain", "bottleneck")
        for norm in ("layer", "group", "none")
    },
    ("inverted", "batch"): "depthwise",
    ("convnext", "layer"): "depthwise",
    ("dense", "batch"): "branched",
    ("inception", "batch"): "branched",
}


@pytest.mark.parametrize(("family", "norm"), OWN)
@pytest.mark.parametrize("blocks", [(3, 3), (2, 2, 2)])
def test_every_family_gets_the_generator_that_was_trained_on_it(
    family: str, norm: Norm, blocks: tuple[int, ...]
) -> None:
    spec = Spec(family, blocks, (16, 32, 64)[: len(blocks)], Style(norm=norm))
    with torch.device("meta"):
        model = spec.build(10)
    plan = geninit.plan(model, pretrained="auto", example_inputs=torch.zeros(1, 3, 32, 32, device="meta"))
    resnet = family == "basic" and len(blocks) == 3  # ghn-cifar10 knows these better
    assert plan.source == ("ghn-cifar10" if resnet else f"ghn-cifar10-{OWN[family, norm]}")
