"""Records as trainings would make them, without any training."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from torch_geninit.training.report.paper import cost, ensembles, layers, noise, trainings
from torch_geninit.training.report.paper.budget import Setup
from torch_geninit.training.report.paper.initialisations import REGISTRY
from torch_geninit.training.report.paper.records import Records

SETUP = Setup("0" * 16, "images of a test", 8, 4, 4, (1, 1, 1), (4, 8, 16), epochs=2)
SCORES = {"accuracy": 0.5, "nll": 1.25, "brier": 0.625, "ece15": 0.125, "ece10": 0.25}


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Records of every experiment: each initialisation a point better than the one before, He at 40 %."""
    records, setup, draw = Records(tmp_path_factory.mktemp("records")), asdict(SETUP), random.Random(0)

    def made(experiment: str, settings: dict[str, object], result: dict[str, object]) -> None:
        records.make(experiment, settings, setup, lambda: result)

    for index, name in enumerate(REGISTRY):
        for lr, lost in ((0.01, 0.05), (0.1, 0.0)):
            for seed in (0, 1, 2):
                test = 0.39 + 0.01 * index + 0.001 * seed - lost
                made(
                    trainings.EXPERIMENT,
                    {"initialisation": name, "content": "", "lr": lr, "seed": seed},
                    {
                        "load_and_generate_seconds": 0.5,
                        "calibration_seconds": 0.25,
                        "validation": [0.1, 0.71 - lost, 0.86 - lost],
                        "validation_nll": [2.3, 1.0, 0.5],
                        "train_seconds": [10.0, 20.0],
                        "test": test,
                        "test_nll": 1.5,
                        "threads": 1,
                    },
                )
    for name in ("he", "noise-ghn-cifar10"):
        values = SCORES | {f"{key} scaled": value / 2 for key, value in SCORES.items()}
        apart = draw.random() / 2
        result = {
            "sizes": {size: {str(s): values for s in range(6)} for size in ("1", "2", "3")},
            "temperature": {"1": 1.5, "2": 1.25, "3": 1.0},
            "disagreement": [[0.0 if i == j else apart for j in range(3)] for i in range(3)],
            "cosine": [[1.0 if i == j else 1 - apart for j in range(3)] for i in range(3)],
        }
        made(ensembles.EXPERIMENT, {"initialisation": name, "content": "", "lr": 0.1}, result)
    for scale in (2.0, 0.0, 0.5):
        moment = {"member": 0.5 - scale / 10, "together": 0.6, "disagreement": scale / 10, "cosine": 0.9}
        settings = {"content": "", "scale": scale, "lr": 0.1, "members": 2, "epochs": 1}
        made(noise.EXPERIMENT, settings, {"before": moment, "after": moment})
    for index, layer in enumerate((layers.NO_LAYER, "conv1.weight", "a.weight", "b.weight")):
        settings = {"layer": layer, "content": "", "lr": 0.1, "seeds": 2}
        error = None if layer == layers.NO_LAYER else 1.0 - index / 10
        made(layers.EXPERIMENT, settings, {"validation": [0.5, 0.5 + index / 50], "reconstruction": error})
    cost.record(records)
    return records
