"""Trial: all that it takes to run a prediction on the probe of its generator, but the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.request import Request
from torch_geninit.parameters.targets import PlannedParameters


@dataclass(frozen=True)
class Trial:
    """What is run: a generator's answer to a request, in a copy of the model that the parameters are of.

    Attributes:
        request: what the generator is asked.
        pretrained: the generator.
        source: its name, as it was given.
        parameters: those of the model, to be found in the copy.
        example_inputs: as they were passed; each tensor in them stands for the images.
    """

    request: Request
    pretrained: WeightGenerator = field(repr=False)
    source: str
    parameters: PlannedParameters = field(repr=False)
    example_inputs: Any = field(default=None, repr=False)
