"""Ensembles of stored networks: averaged logits, every subset, corrupted images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

pytest.importorskip("torchmetrics")
pytest.importorskip("tqdm")

from torch_geninit.training.data.corruptions import corrupted
from torch_geninit.training.data.images import Split
from torch_geninit.training.evaluate import ensembles
from torch_geninit.training.evaluate.memorisation import stored_networks
from torch_geninit.training.loops.classifier import logits_of
from torch_geninit.training.networks.resnet import he_, resnet20


def test_a_report_averages_over_corruptions_and_severities(
    images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: ensembles.CORRUPTIONS[name] for name in ("fog", "jpeg")}
    monkeypatch.setattr(ensembles, "CORRUPTIONS", kinds)
    torch.manual_seed(0)
    models = [he_(resnet20()) for _ in range(2)]
    for model in models:
        model.fc.weight.data.mul_(0.01)  # no probability near 0
    found = ensembles.report(models, images, size=1, images=20)
    few = images.spread(20)
    entropies = []
    for kind in kinds:
        for severity in range(1, 6):
            harmed = corrupted(few, kind, severity)
            entropies += [F.cross_entropy(logits_of(model, harmed), few.labels).item() for model in models]
    assert found["together"] == found["alone"], "of one network"
    nll, error = found["alone"]["corrupted"]["nll"]
    assert nll == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    own = [sum(entropies[member::2]) / 10 for member in (0, 1)]
    assert error == pytest.approx(abs(own[0] - own[1]) / 2, rel=1e-3)
    severities = [found["alone"]["by severity"][severity]["nll"][0] for severity in range(1, 6)]
    assert nll == pytest.approx(sum(severities) / 5)
    one, other = (logits_of(model, images).argmax(1) for model in models)
    assert found["disagreement"] == pytest.approx((one != other).float().mean().item())


def test_labels_are_what_tells_paths_apart() -> None:
    zoos = ["runs/starts/he/lr0.1", "runs/starts/ghn/lr0.1"]
    assert ensembles.labels_of(zoos) == {"he": zoos[0], "ghn": zoos[1]}
    assert ensembles.labels_of(["runs/a", "runs/a/b"]) == {"a": "runs/a", "a/b": "runs/a/b"}
    assert ensembles.labels_of(["runs/zoo"]) == {"zoo": "runs/zoo"}
    assert len(ensembles.labels_of(["runs/a", "runs/b", "other/a"])) == 3


@pytest.fixture
def zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two zoos of three untrained networks, and one corruption to measure them on."""
    monkeypatch.setattr(ensembles, "CORRUPTIONS", {"fog": ensembles.CORRUPTIONS["fog"]})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for seed in range(3):
            torch.manual_seed(seed + 10 * (name == "b"))
            save_file(he_(resnet20()).state_dict(), tmp_path / name / f"{seed}.safetensors")
    return {name: str(tmp_path / name) for name in ("a", "b")}


def test_zoos_are_measured_once(
    zoos: dict[str, str], images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensembles.measure(zoos, images, tmp_path / "run", size=2, images=20)
    expected = ensembles.report(stored_networks(zoos["b"], 10), images, size=2, images=20)
    assert first[1] == json.loads(json.dumps({"zoo": "b", **expected}))
    monkeypatch.setattr(ensembles, "report", None)
    # Whatever else is measured with it, and whatever it is called.
    (again,) = ensembles.measure({"other": zoos["b"]}, images, tmp_path / "run", size=2, images=20)
    assert again == {**first[1], "zoo": "other"}


def test_a_zoo_that_has_changed_is_measured_anew(zoos: dict[str, str], images: Split, tmp_path: Path) -> None:
    first = ensembles.measure(zoos, images, tmp_path / "run", size=2, images=20)
    (Path(zoos["a"]) / "2.safetensors").unlink()
    second = ensembles.measure(zoos, images, tmp_path / "run", size=2, images=20)
    assert [one["networks"] for one in second] == [2, 3] and second[1] == first[1]


def test_too_small_a_zoo_is_refused_before_any_is_measured(
    zoos: dict[str, str], images: Split, tmp_path: Path
) -> None:
    (Path(zoos["b"]) / "2.safetensors").unlink()
    with pytest.raises(ValueError, match="b holds 2 networks; expected at least --size 3"):
        ensembles.measure(zoos, images, tmp_path / "run", size=3, images=20)
    assert not (tmp_path / "run").exists()
