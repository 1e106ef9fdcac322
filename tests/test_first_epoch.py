"""One epoch from both starts: what is paired, what is chosen, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.training import first_epoch
from torch_geninit.training.data import Split
from torch_geninit.training.families import Spec

SPEC = Spec("plain", (1, 1), (8, 16))


def test_each_start_has_its_own_rate_and_the_seeds_are_paired(
    tiny: Callable[[str], WeightGenerator], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, float, int]] = []
    he = {}

    def trained(model: nn.Module, lr: float, seed: int, *_: object, amp: bool) -> float:
        weight = model.stem[0].weight.detach().clone()
        generated = not calls_are_he(weight, seed)
        calls.append((generated, lr, seed))
        return {(False, 0.1): 0.5, (False, 0.01): 0.4, (True, 0.1): 0.3, (True, 0.01): 0.6}[generated, lr]

    def calls_are_he(weight: torch.Tensor, seed: int) -> bool:
        # The first network of each seed is He's.
        return torch.equal(he.setdefault(seed, weight), weight)

    monkeypatch.setattr(first_epoch, "accuracy_after_an_epoch", trained)
    record = first_epoch.compare(SPEC, tiny("ghn"), images, images, rates=(0.1, 0.01), seeds=3)
    assert (record["he"]["lr"], record["generated"]["lr"]) == (0.1, 0.01)
    assert calls == [
        *[(False, 0.1, 0), (False, 0.01, 0), (False, 0.1, 1), (False, 0.1, 2)],
        *[(True, 0.1, 0), (True, 0.01, 0), (True, 0.01, 1), (True, 0.01, 2)],
    ]
    assert record["generated"]["accuracy"] == [0.6] * 3


def test_where_the_verb_falls_back_there_is_only_he(
    tiny: Callable[[str], WeightGenerator], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_epoch, "accuracy_after_an_epoch", lambda *_, **__: 0.5)
    stranger = Spec("transformer", (1,), (32,), stem=8, heads=2)
    record = first_epoch.compare(stranger, tiny("ghn"), images, images, rates=(0.1,), seeds=1)
    assert "generated" not in record
    assert first_epoch.lead(record) is None


@pytest.mark.parametrize("kind", ["vae", "noise-ghn"])
def test_other_generators_draw_with_the_seed(
    kind: str, tiny: Callable[[str], WeightGenerator], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems: list[torch.Tensor] = []

    def trained(model: nn.Module, *_: object, **__: object) -> float:
        stems.append(model.stem[0].weight.detach().clone())
        return 0.5

    monkeypatch.setattr(first_epoch, "accuracy_after_an_epoch", trained)
    record = first_epoch.compare(SPEC, tiny(kind), images, images, rates=(0.1, 0.01), seeds=2)
    assert record["generated"]["accuracy"] == [0.5, 0.5]
    he, generated = stems[:3], stems[3:]
    assert torch.equal(generated[0], generated[1]), "one draw at both rates"
    assert not any(torch.equal(generated[2], other) for other in (generated[0], *he))


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


def record(name: str, he: list[float], generated: list[float] | None) -> dict[str, object]:
    found: dict[str, object] = {"network": name, "family": name.split()[0], "he": {"accuracy": he}}
    return found if generated is None else found | {"generated": {"accuracy": generated}}


RECORDS = [
    record("plain, ahead", [0.4, 0.4, 0.4], [0.5, 0.6, 0.7]),
    record("dense surely behind", [0.4, 0.4, 0.4], [0.30, 0.31, 0.29]),
    record("dense perhaps behind", [0.4, 0.4, 0.4], [0.1, 0.45, 0.5]),
    record("plain, left alone", [0.4, 0.4, 0.4], None),
    record("plain, ahead", [0.4, 0.4, 0.4], [0.5, 0.6, 0.7]),  # another network of the same name
]


def test_summary_by_hand() -> None:
    summary = first_epoch.summary(RECORDS)
    assert list(summary) == ["all", "dense", "plain,"]
    found = summary["all"]
    assert (found["networks"], found["generated"], found["ahead"]) == (5, 4, 2)
    assert found["significantly_worse"] == ["dense surely behind"]
    assert found["mean_lead"] == pytest.approx((0.2 + 0.2 - 0.1 - 0.05) / 4)
    assert (summary["plain,"]["networks"], summary["plain,"]["generated"]) == (3, 2)
    assert summary["plain,"]["mean_lead"] == pytest.approx(0.2)


def test_the_picture_has_each_generated_network_at_its_two_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    saved = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: saved.append(self))
    first_epoch.draw(RECORDS, tmp_path / "picture.png")
    dense, plain = (points.lines[0].get_xydata() for points in saved[0].axes[0].containers)
    assert dense == pytest.approx(torch.tensor([[40.0, 30.0], [40.0, 35.0]]).numpy())
    assert plain == pytest.approx(torch.tensor([[40.0, 60.0], [40.0, 60.0]]).numpy())
