"""Training of a hypernetwork: it learns, resumes where it stopped, and goes on as itself alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("torchvision")
pytest.importorskip("tqdm")
pytest.importorskip("torchmetrics")

from tests.conftest import ghn_config
from torch_geninit.hub import file
from torch_geninit.training.loops import ghn, ghn_learner, warm_start
from torch_geninit.training.loops.ghn_loss import Diversity
from torch_geninit.training.networks import search_space
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.runs.checkpoint import Run


@pytest.fixture()
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "width": 16,
        "rounds": 1,
        "hidden": 16,
        "mix": 8,
        "rank": 8,
        "head_rank": 2,
        "channels": 16,
        "kernel": 3,
    }
    monkeypatch.setattr(warm_start, "SIZES", {**warm_start.SIZES, **sizes})
    # Not narrower: on AVX2 oneDNN writes past its memory in the gradient of a strided 1x1 kernel of fewer
    # than 8 input channels (uxlfoundation/oneDNN, issue 6035). Networks that are drawn have 8 or more.
    monkeypatch.setattr(search_space, "sample", lambda *_: Spec("basic", (1, 1), (8, 16)))
    # The held-out network is not of interest here and costs the most.
    monkeypatch.setattr(ghn, "check", lambda *_, **__: {})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("noise", [0, 2])
def test_interrupted_hypernetwork_ends_as_the_uninterrupted(
    prepared: Path, tmp_path: Path, noise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghn, "SAVE_EVERY", 2)
    schedule = ghn.Schedule(((16, 7),), warmup=2, batch_size=16)
    whole = ghn.train_ghn(prepared, tmp_path / "whole", schedule, noise=noise)
    step = ghn_learner.Average.update

    def stop(self: ghn_learner.Average, generator: ghn.GraphHyperNetwork, number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        step(self, generator, number)

    monkeypatch.setattr(ghn_learner.Average, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        ghn.train_ghn(prepared, tmp_path / "halves", schedule, noise=noise)
    monkeypatch.setattr(ghn_learner.Average, "update", step)
    resumed = ghn.train_ghn(prepared, tmp_path / "halves", schedule, noise=noise)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.usefixtures("small")
def test_hypernetwork_learns_and_noise_starts_from_it(prepared: Path, tmp_path: Path) -> None:
    schedule = ghn.Schedule(((16, 100),), lr=5e-3, warmup=5, batch_size=16)
    trained = ghn.train_ghn(prepared, tmp_path / "plain", schedule)
    lines = (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < 0.6  # chance is log 2
    complete = {**ghn_config(), **{name: trained.config[name] for name in ("sizes", "classes")}}
    exported = ghn.GraphHyperNetwork(complete)
    exported.load_state_dict(trained.state_dict())
    file.write(exported, tmp_path / "plain.safetensors", torch.float32)
    noisy = ghn.train_ghn(
        prepared,
        tmp_path / "noise",
        ghn.Schedule(((16, 1),), lr=0.0, batch_size=16),
        noise=2,
        start=tmp_path / "plain.safetensors",
    )
    with_noise, without = noisy.state_dict(), trained.state_dict()
    widened = [name for name in without if with_noise[name].shape != without[name].shape]
    assert widened == ["decoder.trunk.0.weight"]


@pytest.mark.usefixtures("small")
def test_shared_noise_is_kept_in_the_config(prepared: Path, tmp_path: Path) -> None:
    schedule = ghn.Schedule(((16, 1),), lr=0.0, batch_size=16)
    for shared in (False, True):
        folder = tmp_path / str(shared)
        trained = ghn.train_ghn(prepared, folder, schedule, noise=2, diversity=Diversity(shared=shared))
        state = Run(folder).resume()
        assert state is not None and state["card"].get("shared_noise", False) is shared
        assert trained.shared_noise is shared


@pytest.mark.usefixtures("small")
def test_a_run_goes_on_as_itself_alone(prepared: Path, tmp_path: Path) -> None:
    """An export describes the networks of the whole run by what the last checkpoint says."""
    schedule = ghn.Schedule(((16, 1),), lr=0.0, batch_size=16, warmup=0)
    ghn.train_ghn(prepared, tmp_path, schedule, seed=1)
    longer = ghn.Schedule(((16, 2),), lr=0.0, batch_size=16)
    with pytest.raises(ValueError, match="another space: expected seed 2, found 1"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=2)
    with pytest.raises(ValueError, match="another card: expected sizes"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=1, noise=2)
    other = tmp_path / "other.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(prepared).items()}
    tensors["train.images"][0] += 1
    with safe_open(prepared, "pt") as file:
        save_file(tensors, other, file.metadata())
    with pytest.raises(ValueError, match="another source: expected data"):
        ghn.train_ghn(other, tmp_path, longer, seed=1)
    with pytest.warns(UserWarning, match=r"goes on from step 1 with phases .* -> .*warmup 0 -> 200"):
        ghn.train_ghn(prepared, tmp_path, longer, seed=1)
    state = Run(tmp_path).resume()
    assert state is not None and state["step"] == 2


@pytest.mark.usefixtures("small")
def test_the_last_step_is_logged_and_measured(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghn, "check", lambda *_, **__: {"accuracy": 0.5})
    schedule = ghn.Schedule(((16, 3),), lr=0.0, batch_size=16)
    ghn.train_ghn(prepared, tmp_path, schedule, check_every=2)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3 and json.loads(line)["accuracy"] == 0.5
