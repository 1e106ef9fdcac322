"""Experiments: what is measured, of which networks, and that all is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("tqdm")

from tests.support.colours import colours
from torch_geninit.training.loops.classifier import score
from torch_geninit.training.report.paper import ensembles, initialisations, trainings
from torch_geninit.training.report.paper.budget import BUDGETS, Setup
from torch_geninit.training.report.paper.cost import networks_until_paid, reached
from torch_geninit.training.report.paper.initialisations import REGISTRY, initialised
from torch_geninit.training.report.paper.records import Records
from torch_geninit.training.report.paper.trainings import Bench

WITHOUT_FILE = ("pytorch", "he", "xavier", "orthogonal", "lsuv")
SETUP = Setup("0" * 16, "colours", 32, 16, 16, (1,), (4,), epochs=1, batch_size=16, calibrate=16)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    images = [colours(count, seed=count, size=8) for count in (32, 16, 18)]
    return Bench(SETUP, *images, Records(tmp_path / "records"), tmp_path / "runs")


@pytest.mark.parametrize("name", WITHOUT_FILE)
def test_an_initialisation_is_its_seeds(name: str) -> None:
    images = colours(32, size=8)
    one, again, other = (initialised(name, SETUP, images, seed).model for seed in (0, 0, 1))
    assert torch.equal(one.get_parameter("conv1.weight"), again.get_parameter("conv1.weight"))
    assert not torch.equal(one.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_initialisations_differ_and_are_calibrated_alike() -> None:
    images = colours(32, size=8)
    models = [
        initialised(n, SETUP, images, 0).model for n in ("pytorch", "he", "xavier", "orthogonal", "lsuv")
    ]
    kernels = [model.get_parameter("conv1.weight") for model in models]
    assert all(not torch.equal(a, b) for i, a in enumerate(kernels) for b in kernels[:i])
    inputs = images.spread(16)
    for model in models:
        seen = model.get_submodule("conv1")(inputs.normalise(inputs.images))
        torch.testing.assert_close(model.get_buffer("bn1.running_mean"), seen.mean((0, 2, 3)))


def test_a_registered_initialisation_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialisations, "REGISTRY", dict(REGISTRY))
    zeros = initialisations.Initialisation(
        "zeros", lambda model, *_: torch.nn.init.zeros_(model.conv1.weight)
    )
    initialisations.register("zeros", zeros)
    assert not initialised("zeros", SETUP, colours(32, size=8), 0).model.get_parameter("conv1.weight").any()
    with pytest.raises(ValueError, match="expected a new name"):
        initialisations.register("zeros", zeros)


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of pytorch, he.*got 'nothing'"):
        initialised("nothing", SETUP, colours(32, size=8), 0)


def test_a_training_is_recorded_with_its_weights(bench: Bench) -> None:
    bench.runs.mkdir()
    rates = trainings.compare(bench, ["he"], [0.01, 0.1], {"he": 2})
    first = [trainings.training(bench, "he", lr, 0)["validation"][-1] for lr in (0.01, 0.1)]
    assert rates["he"] == (0.01, 0.1)[first.index(max(first))]
    assert len(bench.records.all("trainings")) == 3
    result = trainings.training(bench, "he", rates["he"], 1)
    assert len(result["validation"]) == 2 and len(result["train_seconds"]) == 1
    model = trainings.trained_network(bench, "he", rates["he"], 1)
    assert score(model, bench.test).accuracy == result["test"]


def test_weights_that_are_gone_are_named(bench: Bench) -> None:
    bench.runs.mkdir()
    trainings.training(bench, "he", 0.1, 0)
    trainings.weights_path(bench, trainings.settings_of("he", 0.1, 0)).unlink()
    with pytest.raises(ValueError, match="expected the weights of a recorded training"):
        trainings.trained_network(bench, "he", 0.1, 0)


def test_each_network_is_in_equally_many_ensembles() -> None:
    found = ensembles.windows(5, 3)
    assert all(sum(member in own for own in found) == 3 for member in range(5))
    assert ensembles.windows(3, 3) == [[0, 1, 2]]


def test_ensembles_are_measured_clean_and_by_severity(bench: Bench) -> None:
    models = [initialised("he", SETUP, bench.train, seed).model for seed in range(3)]
    found = ensembles.report(
        models, bench.validation, bench.test, sizes=[2], corruptions=["brightness"], images=6
    )
    assert list(found["sizes"]) == ["1", "2"]
    assert list(found["sizes"]["2"]) == ["0", "1", "2", "3", "4", "5"]
    alone = sum(score(model, bench.test).accuracy for model in models) / 3
    assert found["sizes"]["1"]["0"]["accuracy"] == pytest.approx(alone)
    for conditions in found["sizes"].values():
        assert conditions["0"]["accuracy"] == conditions["0"]["accuracy scaled"]
    assert [found["disagreement"][i][i] for i in range(3)] == [0, 0, 0]


def test_time_to_an_accuracy_counts_the_start() -> None:
    start = {"load_and_generate_seconds": 1.0, "calibration_seconds": 2.0, "train_seconds": [10.0, 20.0]}
    fast, slow = ({"validation": values, **start} for values in ([0.7, 0.8, 0.9], [0.1, 0.2, 0.7]))
    assert reached([fast, slow], 0.7) == (1.0, (3.0 + 33.0) / 2, 2, 2)
    assert reached([fast, slow], 0.8) == (None, None, 1, 2)


@pytest.mark.parametrize(
    ("saved", "networks"), [(7200.0, 1), (1000.0, 4), (0.0, None), (-5.0, None), (None, None)]
)
def test_a_generator_has_paid_after_whole_networks(saved: float | None, networks: int | None) -> None:
    assert networks_until_paid(1.0, saved) == networks


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=list(BUDGETS))
def test_a_budget_fills_its_ensembles(budget: object) -> None:
    assert max(budget.sizes) <= budget.members  # type: ignore[attr-defined]
    assert set(budget.ensembles) <= REGISTRY.keys()  # type: ignore[attr-defined]
    assert budget.train is None or budget.train >= budget.batch_size  # type: ignore[attr-defined]
