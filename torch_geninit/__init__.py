"""Initialise PyTorch networks with learned weight generators: slice VAEs and graph hypernetworks."""

from torch_geninit._version import __version__
from torch_geninit.accuracy import Expectation, expect
from torch_geninit.batchnorm import recalibrate_bn_
from torch_geninit.errors import GeneratorFileError, GenInitWarning, StrictError
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import TraceError, trace
from torch_geninit.hub.registry import HubError, list_pretrained, load
from torch_geninit.initializers import ghn_, noise_ghn_, plan, vae_
from torch_geninit.planning.plan import Plan

__all__ = [
    "Architecture",
    "Expectation",
    "GenInitWarning",
    "GeneratorFileError",
    "HubError",
    "Plan",
    "StrictError",
    "TraceError",
    "__version__",
    "expect",
    "ghn_",
    "list_pretrained",
    "load",
    "noise_ghn_",
    "plan",
    "recalibrate_bn_",
    "trace",
    "vae_",
]
