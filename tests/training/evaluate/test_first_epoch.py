"""One epoch from both initialisations: what is paired, what is chosen, what is counted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training.__main__ import main
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import first_epoch
from torch_geninit.training.evaluate.paired_stats import Pair
from torch_geninit.training.networks.families import Spec

SPEC = Spec("plain", (1, 1), (8, 16))


@pytest.fixture
def stems(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """First kernels of the networks that are trained, in order; each ends at an accuracy of a half."""
    found: list[torch.Tensor] = []

    def trained(model: nn.Module, *_: object, **__: object) -> float:
        found.append(model.stem[0].weight.detach().clone())
        return 0.5

    monkeypatch.setattr(first_epoch, "accuracy_after_an_epoch", trained)
    return found


def test_the_best_rate_of_the_first_seed_is_that_of_all(
    images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, int]] = []

    def trained(_: nn.Module, lr: float, seed: int, *__: object, amp: bool) -> float:
        calls.append((lr, seed))
        return {0.1: 0.3, 0.01: 0.6}[lr] + seed / 100

    monkeypatch.setattr(first_epoch, "accuracy_after_an_epoch", trained)
    record = first_epoch.measure(SPEC, "he", images, images, rates=(0.1, 0.01), seeds=3)
    assert calls == [(0.1, 0), (0.01, 0), (0.01, 1), (0.01, 2)]
    assert (record["lr"], record["accuracy"]) == (0.01, [0.6, 0.61, 0.62])
    assert record["first seed"] == {0.1: 0.3, 0.01: 0.6}


@pytest.mark.parametrize("kind", ["ghn", "noise-ghn", "vae"])
def test_draws_go_by_the_seed(
    kind: str,
    ghn: WeightGenerator,
    tiny: Callable[[str], WeightGenerator],
    images: Split,
    stems: list[torch.Tensor],
) -> None:
    first_epoch.measure(SPEC, "he", images, images, rates=(0.1, 0.01), seeds=2)
    record = first_epoch.measure(SPEC, tiny(kind), images, images, rates=(0.1, 0.01), seeds=2)
    he, generated = stems[:3], stems[3:]
    assert record["accuracy"] == [0.5, 0.5]
    assert torch.equal(generated[0], generated[1]), "one draw at both rates"
    assert torch.equal(generated[1], generated[2]) is (kind == "ghn"), "a plain GHN draws nothing"
    assert torch.equal(he[0], he[1]) and not torch.equal(he[1], he[2])
    assert not any(torch.equal(one, other) for one in he for other in generated)


def test_where_nothing_is_generated_nothing_is_trained(
    ghn: WeightGenerator, images: Split, stems: list[torch.Tensor]
) -> None:
    stranger = Spec("transformer", (1,), (32,), stem=8, heads=2)
    record = first_epoch.measure(stranger, ghn, images, images, rates=(0.1,), seeds=1)
    assert "accuracy" not in record and not stems
    assert Pair({"accuracy": [0.5]}, record).lead() is None


def test_what_starts_from_he_serves_every_generator(
    tiny_file: Callable[[str], Path],
    images: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stems: list[torch.Tensor],
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "data").touch()
    monkeypatch.setattr(first_epoch, "load", lambda *_: images)
    monkeypatch.setattr(first_epoch, "unseen_specs", lambda *_: [SPEC, Spec("plain", (1, 2), (8, 16))])

    def trained(kind: str) -> int:
        before = len(stems)
        command = f"first-epoch --data {tmp_path / 'data'} --pretrained {tiny_file(kind)} --run {folder}"
        main([*command.split(), *"--rates 0.1 --seeds 2".split()])
        return len(stems) - before

    assert trained("noise-ghn") == 8, "two networks, two seeds, two initialisations"
    assert trained("noise-ghn") == 0
    assert trained("vae") == 4
    assert {path.name for path in folder.iterdir()} == {"he", "tiny-noise-ghn", "tiny-vae"}


def test_a_generator_of_the_name_of_he_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_epoch, "load", lambda *_: None)
    monkeypatch.setattr(first_epoch, "unseen_specs", lambda *_: [])
    arguments = argparse.Namespace(
        **{"data": "d", "pretrained": "to/he.safetensors", "run": tmp_path, "networks": 1, "families": []},
        **{"most_macs": 1.0, "rates": [0.1], "seeds": 1, "amp": False, "picture": None},
    )
    with pytest.raises(ValueError, match="he is the folder of He initialisation; rename it"):
        first_epoch.main(arguments)
    assert not list(tmp_path.iterdir())


def test_an_epoch_is_trained_and_measured(images: Split) -> None:
    torch.manual_seed(0)
    model = SPEC.build(10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    few = images.subset(torch.arange(40))
    many = Split(few.images.repeat(16, 1, 1, 1), few.labels.repeat(16), few.mean, few.std, few.classes)
    accuracy = first_epoch.accuracy_after_an_epoch(model, 0.05, 0, many, images)
    assert 0 <= accuracy <= 1
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_training_that_diverges_counts_as_chance(images: Split) -> None:
    model = SPEC.build(10)
    with torch.no_grad():
        model.stem[0].weight.fill_(torch.nan)
    few = images.subset(torch.arange(8).repeat(16))
    assert first_epoch.accuracy_after_an_epoch(model, 0.05, 0, few, images) == 1 / len(images.classes)


def pair(name: str, he: list[float], generated: list[float] | None) -> Pair:
    found = {"network": name, "family": name.split()[0]}
    return Pair({**found, "accuracy": he}, found if generated is None else {**found, "accuracy": generated})


PAIRS = [
    pair("plain, ahead", [0.4, 0.4, 0.4], [0.5, 0.6, 0.7]),
    pair("dense surely behind", [0.4, 0.4, 0.4], [0.30, 0.31, 0.29]),
    pair("dense perhaps behind", [0.4, 0.4, 0.4], [0.1, 0.45, 0.5]),
    pair("plain, left alone", [0.4, 0.4, 0.4], None),
    pair("plain, ahead", [0.4, 0.4, 0.4], [0.5, 0.6, 0.7]),  # another network of the same name
]


def test_summary_by_hand() -> None:
    summary = first_epoch.summary(PAIRS)
    assert list(summary) == ["all", "dense", "plain,"]
    found = summary["all"]
    assert (found["networks"], found["generated"], found["ahead"]) == (5, 4, 2)
    assert found["significantly_worse"] == ["dense surely behind"]
    assert found["mean_lead"] == pytest.approx((0.2 + 0.2 - 0.1 - 0.05) / 4)
    assert (summary["plain,"]["networks"], summary["plain,"]["generated"]) == (3, 2)
    assert summary["plain,"]["mean_lead"] == pytest.approx(0.2)
