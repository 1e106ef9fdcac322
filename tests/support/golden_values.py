"""Golden values: a few numbers of every generated parameter, and fingerprints of graphs.

``python -m tests.support.golden_values`` renews ``tests/support/golden`` and says what moved; list that in
CHANGELOG.md under "Numerics".
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.graph import vocabulary
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.hub import manifest
from torch_geninit.planning.choose import KINDS
from torch_geninit.training.networks.blocks import Style
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.residual import resnet18
from torch_geninit.training.networks.resnet import ResNet, resnet20

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python -m tests.support.golden_values"
SEED = 7

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    # Wider than decoders have been, so that tiles are repeated, and of a depth of its own.
    "wide": lambda: ResNet((2, 1, 2), (24, 48, 96), shortcut="B"),
    "inverted": lambda: Spec("inverted", (1, 2), (24, 48), Style(squeeze_excite=True)).build(10),
    "convnext": lambda: Spec("convnext", (1, 1, 1), (32, 64, 128), PATCHES, 2).build(10),
    "dense": lambda: Spec("dense", (2, 3, 2), (24, 48, 96)).build(10),
    "inception": lambda: Spec("inception", (1, 1, 1), (32, 64, 128)).build(10),
    "mixer": lambda: Spec("mixer", (2,), (96,), TOKENS, 4).build(10),
    "transformer": lambda: Spec("transformer", (2,), (96,), TOKENS, 4, "stride", 0, 3, "table").build(10),
    "resnet18": lambda: resnet18(24).build(160, 64),
}
PATCHES = Style(norm="layer", activation="gelu", kernel=7)
TOKENS = Style(norm="layer", activation="gelu")

RESNETS = ("resnet20", "wide")
OWN = {
    "ghn-cifar10-depthwise": ("inverted", "convnext"),
    "ghn-cifar10-branched": ("dense", "inception"),
    "ghn-cifar10-tokens": ("transformer", "mixer"),
    "ghn-natural64-residual": ("resnet18",),
}
"""Generator -> networks of the kind that it was trained on; those not named here know ResNets."""


def images(generator: str) -> dict[str, Any]:
    """Return the option that names images of 64 pixels where the guess would be dearer ones."""
    return {"example_inputs": torch.zeros(1, 3, 64, 64)} if "natural64" in generator else {}


def networks(generator: str) -> dict[str, Callable[[], nn.Module]]:
    return {name: NETWORKS[name] for name in OWN.get(generator, RESNETS)}


def pairs() -> list[tuple[str, str]]:
    """Return (verb, name of a shipped generator) for every generator that a verb can use."""
    records = [record for record in manifest.read() if (manifest.SHIPPED / record.filename).exists()]
    return [
        (verb, record.name) for verb, kinds in KINDS.items() for record in records if record.kind in kinds
    ]


def sha256(name: str) -> str:
    return next(record.sha256 for record in manifest.read() if record.name == name)


def apply(verb: str, generator: str, model: nn.Module) -> nn.Module:
    if verb == "vae":
        with warnings.catch_warnings():
            # Kernel sizes without a VAE are kept.
            warnings.simplefilter("ignore", geninit.GenInitWarning)
            return geninit.vae_(model, pretrained=generator, seed=SEED)
    if verb == "ghn":
        return geninit.ghn_(model, pretrained=generator, strict=True, **images(generator))
    return geninit.noise_ghn_(model, SEED, pretrained=generator, strict=True)


@cache
def made(verb: str, generator: str, network: str) -> tuple[geninit.Plan, nn.Module]:
    """Plan a network and fill it; planning runs it on the probe, which takes most of the time."""
    model = NETWORKS[network]()
    plan = geninit.plan(model, verb, pretrained=generator, **images(generator))  # type: ignore[arg-type]
    return plan, plan.write_(model, statistics="keep", seed=None if verb == "ghn" else SEED)


def summary(value: Tensor) -> list[float]:
    """Mean, root mean square, first, middle and last value."""
    flat = value.detach().double().flatten()
    numbers = [flat.mean(), flat.square().mean().sqrt(), flat[0], flat[len(flat) // 2], flat[-1]]
    return [float(f"{float(number):.7g}") for number in numbers]


def values(verb: str, generator: str) -> dict[str, Any]:
    """Return network -> parameter -> numbers, and the file they come from."""
    found: dict[str, Any] = {"sha256": sha256(generator), "seed": SEED}
    for name in networks(generator):
        plan, model = made(verb, generator, name)
        parameters = dict(model.named_parameters())
        found[name] = {entry.name: summary(parameters[entry.name]) for entry in plan.generated}
    return found


def close(found: list[float], expected: list[float]) -> bool:
    """Compare two summaries to rounding: 1e-4 of a number, or of the parameter's root mean square."""
    scale = 1e-4 * abs(expected[1])
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=scale) for a, b in zip(found, expected, strict=True))


class Tagger(nn.Module):
    """Tokens, a recurrent network in two directions, one tag a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = nn.LSTM(16, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.tag = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        tags: Tensor = self.tag(self.rnn(self.embed(tokens))[0])
        return tags


class Hourglass(nn.Module):
    """Down, up by a transposed convolution, joined with what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU())
        self.inside = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        joined = torch.cat([x, self.up(inner + self.inside(inner))], 1)
        out: Tensor = self.head(nn.functional.interpolate(joined, scale_factor=2))
        return out


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None)
        return model

    return make


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))


GRAPHS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet20": (resnet20, None),
    "hourglass": (Hourglass, torch.empty(1, 3, 16, 16, device="meta")),
    "tagger": (Tagger, torch.zeros(2, 7, dtype=torch.long, device="meta")),
    "transformer encoder": (_encoder, torch.empty(2, 9, 16, device="meta")),
    **{
        name: (_torchvision(name), None)
        for name in ("resnet18", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t")
    },
}
"""Ten networks, and the inputs of those that the tracer doesn't guess."""


def fingerprint(name: str) -> str:
    make, inputs = GRAPHS[name]
    with torch.device("meta"):
        model = make()
    return trace(model, inputs).fingerprint


def path(stem: str) -> Path:
    return GOLDEN / f"{stem}.json"


def graphs_stem() -> str:
    return f"graphs-{vocabulary.VERSION}"


def read(stem: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path(stem).read_text(encoding="utf-8"))
    return found


def renew() -> None:
    """Write every file of golden values, remove those of generators that are gone, and say what moved."""
    new = {f"{verb}-{name}": values(verb, name) for verb, name in pairs()}
    new[graphs_stem()] = {name: fingerprint(name) for name in GRAPHS}
    GOLDEN.mkdir(exist_ok=True)
    for old in sorted(GOLDEN.glob("*.json")):
        # Graphs of older vocabularies are history: files trained with them are still about.
        if old.stem not in new and not old.stem.startswith("graphs-"):
            old.unlink()
            print(f"removed  {old.name}")
    for stem, content in new.items():
        before = read(stem) if path(stem).exists() else None
        lines = [f"  {json.dumps(key)}: {_line(value)}" for key, value in content.items()]
        path(stem).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        moved = "new" if before is None else "same" if before == content else "moved"
        print(f"{moved:8} {path(stem).name}")


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    return "{\n" + inner + "\n  }"


if __name__ == "__main__":
    torch.set_num_threads(1)
    renew()
