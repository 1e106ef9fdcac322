"""Random networks from a grammar of layers; the same decisions build the same network again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.support.random_layers import (
    Attention,
    Branches,
    ChannelsLast,
    Mean,
    Patches,
    Positions,
    Recurrent,
    Residual,
)

T = TypeVar("T")

CHANNELS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 17, 24, 32]
ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.PReLU, nn.Hardswish]
DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Network(nn.Module):
    """Parts in the order ``steps``, whatever the order in which they are registered."""

    def __init__(self, parts: Sequence[nn.Module], unused: nn.Module | None) -> None:
        super().__init__()
        self.steps = [f"part{index}" for index in range(len(parts))]
        for name, part in zip(self.steps, parts, strict=True):
            self.add_module(name, part)
        if unused is not None:
            self.unused = unused

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = self._modules[step](x)  # type: ignore[misc]
        return x


@dataclass
class Decisions:
    """Choices drawn once and then repeated, so that the same network can be built again."""

    draw: Callable[[int], int]
    made: list[int] = field(default_factory=list)
    replayed: Iterator[int] | None = None

    def __call__(self, options: Sequence[T]) -> T:
        if self.replayed is not None:
            return options[next(self.replayed)]
        self.made.append(self.draw(len(options)))
        return options[self.made[-1]]

    def chance(self, out_of: int) -> bool:
        return self(range(out_of)) == out_of - 1

    def number(self, low: int, high: int) -> int:
        return self(range(low, high + 1))


class Recipe:
    """A random network and inputs for it.

    Args:
        draw: returns a number below its argument.
        widest: most channels of a layer.
    """

    def __init__(self, draw: Callable[[int], int], *, widest: int = 4096) -> None:
        self.choose = Decisions(draw)
        self.widest = widest
        self.inputs: Tensor
        self.first = self.build()

    def build(self) -> nn.Module:
        """Build the network: the same one, with the same values, each time."""
        if self.choose.made:
            self.choose.replayed = iter(self.choose.made)
        state = torch.get_rng_state()
        try:
            torch.manual_seed(0)
            return self._model()
        finally:
            torch.set_rng_state(state)

    def _model(self) -> nn.Module:
        choose = self.choose
        kind = choose(["2d", "2d", "2d", "1d", "3d", "tokens", "features"])
        parts, kind, channels = self._start(kind)
        for _ in range(choose.number(0, 4)):
            if kind in ("1d", "2d", "3d") and choose.chance(8):
                parts.append(Patches())
                kind = "sequence"
                continue
            part, channels = self._part(kind, channels, depth=2)
            parts.append(part)
        parts += [Mean(-1 if kind == "sequence" else 1), nn.Linear(channels, choose([10, 10, 3, 1]))]
        unused = nn.Linear(2, 3) if choose.chance(12) else None
        model: nn.Module = Network(parts, unused)
        self._tie(model)
        self._parametrize(model)
        self._freeze(model)
        return self._convert(model)

    def _width(self, partner: int = 1) -> int:
        if self.choose.chance(12):
            return self.choose.number(1, max(1, min(self.widest, 65536 // partner)))
        return self.choose(CHANNELS)

    def _start(self, kind: str) -> tuple[list[nn.Module], str, int]:
        if kind == "tokens":
            width = self._width(32)
            self.inputs = torch.zeros(2, 5, dtype=torch.long)
            table = nn.Embedding(self.choose([7, 32]), width)
            parts: list[nn.Module] = [table]
            if self.choose.chance(3):
                parts.append(Positions(width))
            return parts, "sequence", width
        channels = self.choose([3, 3, 1, 4])
        extents = {"1d": (9,), "2d": (8, 8), "3d": (4, 4, 4), "features": ()}[kind]
        self.inputs = torch.zeros(2, channels, *extents)
        return [], kind, channels

    def _part(self, kind: str, channels: int, depth: int) -> tuple[nn.Module, int]:
        if depth and self.choose.chance(3):
            return self._compound(kind, channels, depth - 1)
        if kind == "sequence":
            return self._sequence_layer(channels)
        return self._feature_layer(channels) if kind == "features" else self._image_layer(kind, channels)

    def _compound(self, kind: str, channels: int, depth: int) -> tuple[nn.Module, int]:
        how = self.choose(["residual", "add", "join", "gate", "chain"])
        if how == "chain":
            first, middle = self._part(kind, channels, depth)
            second, last = self._part(kind, middle, depth)
            return nn.Sequential(first, second), last
        if how == "residual":
            body, out = self._part(kind, channels, depth)
            return Residual(nn.Sequential(body, self._back(kind, out, channels))), channels
        bodies = []
        for _ in range(2):
            body, out = self._part(kind, channels, depth)
            bodies.append(nn.Sequential(body, self._back(kind, out, channels)))
        branches = Branches(how, -1 if kind == "sequence" else 1, *bodies)
        return branches, 2 * channels if how == "join" else channels

    def _back(self, kind: str, channels: int, wanted: int) -> nn.Module:
        """Return to the number of channels that a sum wants; all layers keep the other extents."""
        if channels == wanted and self.choose.chance(2):
            return nn.Identity()
        if kind in ("sequence", "features"):
            return nn.Linear(channels, wanted)
        convolution: nn.Module = getattr(nn, f"Conv{kind}")(channels, wanted, 1)
        return convolution

    def _image_layer(self, kind: str, channels: int) -> tuple[nn.Module, int]:
        choose = self.choose
        which = choose(
            ["conv", "conv", "conv", "transposed", "grouped", "depthwise", "norm", "act", "pool", "drop"]
        )
        if which == "pool":
            return getattr(nn, f"{choose(['Max', 'Avg'])}Pool{kind}")(3, 1, 1), channels
        if which == "norm":
            return self._norm(kind, channels), channels
        if which in ("act", "drop"):
            return self._activation() if which == "act" else nn.Dropout(0.5), channels
        kernel, bias = choose([1, 3, 3, 5]), choose([True, False])
        name = "ConvTranspose" if which == "transposed" else "Conv"
        groups, width = 1, self._width(channels * kernel ** int(kind[0]))
        if which == "grouped":
            groups = choose([g for g in (1, 2, 3, 4) if channels % g == 0])
            width = groups * choose([1, 2, 5])
        elif which == "depthwise":
            groups, width = channels, channels * choose([1, 2])
        layer = getattr(nn, f"{name}{kind}")(
            channels, width, kernel, padding=kernel // 2, groups=groups, bias=bias
        )
        return layer, width

    def _norm(self, kind: str, channels: int) -> nn.Module:
        choose = self.choose
        which = choose(["batch", "batch", "group", "layer", "instance", "rms", "plain"])
        if which == "group":
            return nn.GroupNorm(choose([g for g in (1, 2, 3, 4) if channels % g == 0]), channels)
        if which in ("layer", "rms"):
            return ChannelsLast(nn.LayerNorm(channels) if which == "layer" else nn.RMSNorm(channels))
        name = "InstanceNorm" if which == "instance" else "BatchNorm"
        norm: nn.Module = getattr(nn, f"{name}{kind}")(channels, affine=which != "plain")
        return norm

    def _activation(self) -> nn.Module:
        return self.choose(ACTIVATIONS)()

    def _feature_layer(self, channels: int) -> tuple[nn.Module, int]:
        which = self.choose(["linear", "linear", "norm", "act", "drop"])
        if which == "linear":
            width = self._width(channels)
            return nn.Linear(channels, width, bias=self.choose([True, False])), width
        if which == "norm":
            return self.choose([nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])(channels), channels
        return self._activation() if which == "act" else nn.Dropout(0.5), channels

    def _sequence_layer(self, channels: int) -> tuple[nn.Module, int]:
        choose = self.choose
        which = choose(["linear", "norm", "act", "attention", "encoder", "recurrent", "recurrent"])
        if which == "linear":
            width = self._width(channels)
            return nn.Linear(channels, width), width
        if which == "norm":
            return choose([nn.LayerNorm, nn.RMSNorm])(channels), channels
        if which == "act" or (which in ("attention", "encoder") and channels > 64):
            return self._activation(), channels
        heads = choose([h for h in (1, 2, 4) if channels % h == 0]) if which != "recurrent" else 0
        if which == "attention":
            return Attention(channels, heads, choose([True, False])), channels
        if which == "encoder":
            inner = choose([4, 9])
            return nn.TransformerEncoderLayer(channels, heads, inner, batch_first=True), channels
        hidden, both = choose([1, 4, 7]), choose([True, False])
        rnn = choose([nn.LSTM, nn.GRU, nn.RNN])
        layers = choose([1, 2])
        built = rnn(channels, hidden, num_layers=layers, bidirectional=both, batch_first=True)
        return Recurrent(built), hidden * (1 + both)

    def _tie(self, model: nn.Module) -> None:
        """Make two parameters of the same shape one, or let one module stand in two places."""
        if not self.choose.chance(4):
            return
        shapes: dict[tuple[str, torch.Size], list[nn.Module]] = {}
        for module in model.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim > 1:
                shapes.setdefault((type(module).__name__, weight.shape), []).append(module)
        for modules in shapes.values():
            if len(modules) > 1:
                modules[1].weight = modules[0].weight

    def _parametrize(self, model: nn.Module) -> None:
        if not self.choose.chance(6):
            return
        layers = [
            m
            for m in model.modules()
            if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and "weight" in m._parameters
        ]
        # The output projection of MultiheadAttention is read without being called.
        layers = [m for m in layers if type(m) is not nn.modules.linear.NonDynamicallyQuantizableLinear]
        layer = self.choose(layers)
        how = self.choose(["weight_norm", "weight_norm all", "spectral_norm", "orthogonal", "hook"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if how == "hook":
                torch.nn.utils.weight_norm(layer)
            elif how == "spectral_norm":
                parametrizations.spectral_norm(layer)
            elif how == "orthogonal" and layer.weight.numel() < 2000:
                parametrizations.orthogonal(layer)
            else:
                parametrizations.weight_norm(layer, dim=None if how == "weight_norm all" else 0)

    def _freeze(self, model: nn.Module) -> None:
        if self.choose.chance(3):
            for parameter in model.parameters():
                parameter.requires_grad_(not self.choose.chance(4))

    def _convert(self, model: nn.Module) -> nn.Module:
        model.train(self.choose([True, False]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(37.5)  # no value that a generator makes by chance
        dtype = self.choose(DTYPES)
        model.to(dtype)
        if self.choose.chance(4):
            for parameter in model.parameters():
                layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
                if layout is not None:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        return model


def permute(model: nn.Module, draw: Callable[[int], int]) -> nn.Module:
    """Register parts and parameters in another order, where that does not change what a network computes."""
    for module in model.modules():
        groups: list[dict[str, Any]] = [module._parameters]
        if not isinstance(module, nn.Sequential | nn.ModuleList | nn.ParameterList):
            groups.append(module._modules)
        for group in groups:
            names = list(group)
            while names:
                name = names.pop(draw(len(names)))
                group[name] = group.pop(name)
    return model
