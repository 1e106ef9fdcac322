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
from torch_geninit.errors import GeneratorFileError
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.hub import manifest
from torch_geninit.hub.file import write
from torch_geninit.parameters.named import list_parameters
from torch_geninit.planning import verdict
from torch_geninit.planning.auto import select
from torch_geninit.planning.options import PlanOptions
from torch_geninit.planning.plan import Method, Plan
from torch_geninit.planning.trust import Measured
from torch_geninit.training.networks.blocks import Norm, Style
from torch_geninit.training.networks.families import Spec

EXAMPLE = torch.zeros(1, 3, 8, 8)


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


def generator(*, more: tuple[str, ...] = (), less: tuple[str, ...] = (), noise: int = 0) -> GraphHyperNetwork:
    """A small hypernetwork that knows ``more`` kinds of parameters, and ``less`` not."""
    config = ghn_config(noise)
    config["trained"]["kinds"] = [kind for kind in (*config["trained"]["kinds"], *more) if kind not in less]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphHyperNetwork(config).eval().requires_grad_(False)


def measuring(right: int, images: int = 100, classes: int = 10) -> Measured:
    """What a generator measures whose classifier gets so many images right."""
    return Measured(images, classes, (3, 8, 8), right, right, None, None, {})


def select_for(
    model: nn.Module,
    candidates: Iterable[tuple[str, WeightGenerator]],
    method: Method = "ghn",
    **options: Any,
) -> Plan:
    found = list(candidates)
    refs = list_parameters(model)
    return select(model, method, found, lambda name: dict(found)[name], PlanOptions(**options), refs)


MEASURES = {
    "the higher accuracy": (measuring(40), measuring(60)),
    "a trusted one": (measuring(12), measuring(40)),
    "relative to chance": (measuring(52, classes=2), measuring(50, classes=10)),
    "one that was measured": ("no probe", measuring(30)),
}


@pytest.mark.parametrize("which", MEASURES)
def test_the_best_on_its_own_probe_is_selected_in_any_order(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dict(zip(("worse", "better"), MEASURES[which], strict=True))
    monkeypatch.setattr(verdict, "measure", lambda plan, *_: told[plan.source])
    for order in permutations([(name, generator()) for name in told]):
        plan = select_for(Small(), order, example_inputs=EXAMPLE)
        assert plan.source == "better" and plan.automatic
        assert {c.name: c.verdict.measured for c in plan.candidates} == {
            name: value if isinstance(value, Measured) else None for name, value in told.items()
        }


def test_who_lacks_a_layer_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(verdict, "measure", lambda plan, *_: (ran.append(plan.source), measuring(50))[1])
    pair = [("lacking", generator()), ("able", generator(more=("5x5 convolution",)))]
    plan = select_for(Small(5), pair, example_inputs=EXAMPLE)
    assert plan.source == "able" and ran == ["able"]
    (reason,) = (c.verdict.reason for c in plan.candidates if c.name == "lacking")
    assert reason.startswith("not run: 1 layer can't be generated, the first is 2.weight")
    assert f"  lacking: {reason}" in repr(plan)


def test_where_nobody_can_fill_all_the_one_that_fills_most_is_named() -> None:
    pair = [("less", generator(less=("linear weight",))), ("more", generator())]
    for order in permutations(pair):
        plan = select_for(Small(5), order, example_inputs=EXAMPLE)
        assert plan.source == "more" and not plan.generated


def test_a_model_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    trace = GraphHyperNetwork.trace
    monkeypatch.setattr(GraphHyperNetwork, "trace", lambda *a: (calls.append(1), trace(*a))[1])
    candidates = [(str(index), generator()) for index in range(3)]
    graph = select_for(Small(), candidates, example_inputs=EXAMPLE).architecture
    assert len(calls) == 1
    same = select_for(Small(), candidates, graph=graph).architecture
    assert len(calls) == 1 and same is graph


def test_without_candidates_it_says_so() -> None:
    with pytest.raises(ValueError, match="no generator for noise_ghn_ is here"):
        select_for(Small(), [], "noise_ghn")


@pytest.fixture()
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two hypernetworks and one with noise."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    made = {
        "stranger": generator(less=("batch_norm bias",)),
        "friend": generator(),
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


@pytest.mark.usefixtures("shipped")
def test_each_verb_selects_among_its_own_kind() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    made = geninit.plan(Small(), "noise_ghn", pretrained="auto", example_inputs=inputs)
    assert made.source == "noisy"


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


# A family in its usual style, and the generator that was trained on it.
OWN: dict[tuple[str, Norm], str] = {
    ("basic", "batch"): "ghn-cifar10",
    ("preactivation", "batch"): "ghn-cifar10-residual",
    ("inverted", "batch"): "ghn-cifar10-depthwise",
    ("dense", "batch"): "ghn-cifar10-branched",
}


@pytest.mark.parametrize(("family", "norm"), OWN)
def test_a_family_gets_the_generator_that_was_trained_on_it(family: str, norm: Norm) -> None:
    model = Spec(family, (1, 1, 1), (16, 32, 64), Style(norm=norm)).build(10)
    plan = geninit.plan(model, pretrained="auto", example_inputs=torch.zeros(1, 3, 32, 32))
    assert plan.source == OWN[family, norm]
    assert plan.verdict is not None and plan.verdict.trusted and plan.verdict.measured is not None
