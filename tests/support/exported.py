"""A generator that was exported."""

from __future__ import annotations

from typing import Any

from tests.support.toy_generator import toy
from torch_geninit.hub import manifest
from torch_geninit.training.release import export as exporting


def exported(**changes: Any) -> manifest.Record:
    fields: dict[str, Any] = {
        "training_data": "none",
        "architectures": "one toy",
        "learning_rate": "any",
        "command": "python -m torch_geninit.training ghn --seed 3",
        "seed": 3,
        "duration_seconds": 90.0,
        "core_hours": 0.5,
        "machine": "two cores",
        "numbers": {
            "accuracy": 0.75,
            "by layer": {"conv1": {"mse": 0.25, "kl": 1.5}, "conv2": {"mse": 0.5, "kl": 2.0}},
        },
    }
    return exporting.export(toy(), "toy", **{**fields, **changes})
