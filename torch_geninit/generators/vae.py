"""Slice VAEs: a small variational autoencoder for the kernel slices of each convolution of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_geninit.generators.base import Tile, Verdict, WeightGenerator, noise_stream

if TYPE_CHECKING:
    from torch_geninit.graph.architecture import Architecture, Shape
    from torch_geninit.plan import Entry, Plan

CHUNK = 8192
"""Slices decoded at once. Noise is drawn chunk by chunk, so this number is part of the sampling algorithm."""

LOG_SCALE_LIMIT = 3.0
"""Bound on a slice's log-scale: no draw is more than e^3 times wider or narrower than its layer."""

Sampler = Callable[[Tensor, torch.Generator, float], None]
"""Fills its first argument, shape (slices, positions), with draws: (out, noise stream, noise scale)."""


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution whose slices a VAE was trained on.

    Attributes:
        name: of its weight in the network it comes from.
        kernel_size: one extent for each spatial dimension.
        fan_in: inputs of one of its filters.
        depth: relative position among the convolutions of that network, 0 is the first, 1 the last.
        std: root mean square of its trained weights; a record without it means He's law.
    """

    name: str
    kernel_size: Shape
    fan_in: int
    depth: float
    std: float


class SliceDecoder(nn.Module):
    r"""Law of one standardised kernel slice given its latent vector z.

    .. math:: x = e^{s(z)} (m(z) + L \epsilon), \quad (m, s)(z) = W_2 h(W_1 z + b_1) + b_2,
        \quad \epsilon \sim N(0, I)

    The lower triangular L is learned: kernel positions are correlated, and what the latents leave over is
    correlated too. The scale s(z) gives slices their heavy tail. h clamps to [-1, 1]: it fits as well as
    tanh and costs a quarter. A raw slice is ``mean + std * x``.

    Args:
        latent: values in z.
        hidden: hidden units.
        positions: kernel positions in a slice, 9 for 3x3.
    """

    def __init__(self, latent: int, hidden: int, positions: int) -> None:
        super().__init__()
        self.latent, self.positions = latent, positions
        self.inner = nn.Linear(latent, hidden)
        self.outer = nn.Linear(hidden, positions + 1)
        # Strictly lower triangle of L; logarithms of its diagonal on the diagonal.
        self.spread = nn.Parameter(torch.zeros(positions, positions))
        self.register_buffer("mean", torch.zeros(positions))
        self.register_buffer("std", torch.ones(positions))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return m(z) of shape (N, positions) and s(z) of shape (N, 1)."""
        out = self.outer(self.inner(z).clamp(-1, 1))
        return out[:, :-1], out[:, -1:].clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)

    def factor(self) -> Tensor:
        """Return L, the Cholesky factor of the likelihood's covariance."""
        return self.spread.tril(-1) + torch.diag(self.spread.diagonal().exp())

    def sampler(self, gain: float) -> Sampler:
        """Return a function that draws raw slices times ``gain``.

        Slices are the columns of one buffer with the rows (hidden units, noise, 1, latents), so that a layer
        is one product with all that is fixed folded into its matrix; slices as rows take half as long again.
        """
        hidden, noise = self.inner.out_features, self.positions
        std = (self.std * gain)[:, None]
        inner = torch.cat([self.inner.bias[:, None], self.inner.weight], 1)
        outer = torch.zeros(self.positions + 1, hidden + noise + 1)
        outer[:-1, :hidden] = self.outer.weight[:-1] * std
        outer[-1, :hidden] = self.outer.weight[-1]
        outer[:-1, hidden:-1] = self.factor() * std
        outer[:, -1] = self.outer.bias
        outer[:-1, -1:] *= std
        mean = (self.mean * gain)[:, None]

        def sample(out: Tensor, stream: torch.Generator, noise_scale: float) -> None:
            buffer = torch.empty(hidden + noise + 1 + self.latent, len(out))
            buffer[hidden : hidden + noise].normal_(0, noise_scale, generator=stream)
            buffer[hidden + noise] = 1
            buffer[hidden + noise + 1 :].normal_(0, noise_scale, generator=stream)
            torch.mm(inner, buffer[hidden + noise :], out=buffer[:hidden]).clamp_(-1, 1)
            x = outer @ buffer[: hidden + noise + 1]
            scale = x[-1:].clamp_(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT).exp_()
            torch.addcmul(mean, x[:-1], scale, out=out.t())

        return sample


class PaperDecoder(nn.Module):
    """Decoder of Harder et al. 2023, whose mean is the sample: 1x1, transposed k x k, 1x1, with ELUs between.

    Args:
        latent: values in z.
        hidden: channels between the transposed and the last convolution; twice as many before.
        kernel_size: of the slice, two extents.
    """

    def __init__(self, latent: int, hidden: int, kernel_size: Shape) -> None:
        super().__init__()
        height, width = kernel_size
        self.latent = latent
        self.layers = nn.Sequential(
            nn.Unflatten(1, (latent, 1, 1)),
            nn.Conv2d(latent, 2 * hidden, 1),
            nn.ELU(),
            nn.ConvTranspose2d(2 * hidden, hidden, (height, width)),
            nn.ELU(),
            nn.Conv2d(hidden, 1, 1),
            nn.Flatten(),
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean slice (N, positions) and a log-scale of zeros (N, 1)."""
        return self.layers(z), z.new_zeros(len(z), 1)

    def sampler(self, gain: float) -> Sampler:
        """Return a function that draws raw slices times ``gain``."""

        def sample(out: Tensor, stream: torch.Generator, noise_scale: float) -> None:
            z = torch.empty(len(out), self.latent).normal_(0, noise_scale, generator=stream)
            torch.mul(self.layers(z), gain, out=out)

        return sample


class SliceVAEs(WeightGenerator):
    r"""Weights of convolutions, drawn slice by slice from VAEs of trained kernels.

    A layer is served by the VAE of its kernel size that is nearest in relative depth. Each slice (o, i) gets
    its own noise. Draws x of the VAE have the trained layer's scale; a new layer gets either the same scale
    relative to He's law, std = sqrt(2 / fan_in), so that it carries over to other widths, or He's scale:

    .. math:: W = x \sqrt{\text{fan\_in}_\text{trained} / \text{fan\_in}}
        \quad\text{or}\quad W = x \sqrt{2 / \text{fan\_in}} / \text{std}_\text{trained}

    Card entries read here: ``sizes`` with ``decoder`` ("slice" or "paper"), ``latent``, ``hidden`` and
    ``layers``, a list of objects with the fields of :class:`TrainedLayer`; ``scale``, "learned" or "he".
    """

    kind = "vae"

    def __init__(self, card: Mapping[str, Any]) -> None:
        super().__init__(card)
        sizes = card["sizes"]
        self.layers = tuple(_trained_layer(record) for record in sizes["layers"])
        if not self.layers:
            raise ValueError("sizes.layers is empty; expected a record for each trained convolution")
        self.scale = card.get("scale", "learned")
        if self.scale not in ("learned", "he"):
            raise ValueError(f"scale: expected 'learned' or 'he', got {self.scale!r}")
        self.decoders = nn.ModuleList(_decoder(sizes, layer.kernel_size) for layer in self.layers)

    def choose(self, kernel_size: Shape, depth: float) -> int | None:
        """Return the index of the VAE for a convolution, or None if none has its kernel size.

        Among VAEs equally near in depth the shallower one serves.
        """
        known = [i for i, layer in enumerate(self.layers) if layer.kernel_size == tuple(kernel_size)]
        return min(
            known, key=lambda i: (abs(self.layers[i].depth - depth), self.layers[i].depth), default=None
        )

    def refusal(self, entry: Entry, architecture: Architecture | None) -> str | None:
        layer = entry.layer
        if layer is None or entry.role != "weight":
            return "VAEs make weights of convolutions only"
        if layer.op != "conv":
            return f"no VAE for {layer.op} layers, trained on convolutions"
        if self.choose(layer.kernel_size, layer.depth) is None:
            known = sorted({trained.kernel_size for trained in self.layers})
            return (
                f"no VAE for kernel size {_times(layer.kernel_size)}, trained on "
                f"{', '.join(_times(size) for size in known)}"
            )
        return None

    def verdict(self, plan: Plan) -> Verdict:
        return Verdict(True, 0.0, "slices are drawn layer by layer, whatever the network around them")

    @torch.no_grad()
    def predict(self, plan: Plan, *, seed: int | None = None, noise_scale: float = 1.0) -> dict[str, Tile]:
        """Draw every parameter that is to be generated; the same seed and name give the same values.

        Args:
            plan: whose generated entries are convolution weights that :meth:`refusal` lets pass.
            seed: of all noise; required, since a VAE without noise would make every slice the same.
            noise_scale: factor on all noise.

        Raises:
            ValueError: if ``seed`` is None.
        """
        if seed is None:
            raise ValueError("slice VAEs draw random weights: expected a seed, got None; pass seed=")
        return {entry.name: self._tile(entry, seed, noise_scale) for entry in plan.generated}

    def _tile(self, entry: Entry, seed: int, noise_scale: float) -> Tile:
        layer = entry.layer
        index = None if layer is None else self.choose(layer.kernel_size, layer.depth)
        if index is None:
            raise ValueError(f"{entry.name}: {self.refusal(entry, None)}; the plan must not ask for it")
        trained = self.layers[index]
        if self.scale == "he":
            gain = math.sqrt(2 / entry.fan_in) / trained.std
        else:
            gain = math.sqrt(trained.fan_in / entry.fan_in)
        stream = noise_stream(seed, entry.canonical)
        slices = self.draw(index, math.prod(entry.shape[:2]), stream, gain, noise_scale)
        return Tile(slices.view(entry.shape), entry.shape, name=entry.canonical)

    @torch.no_grad()
    def draw(
        self, index: int, count: int, stream: torch.Generator, gain: float = 1.0, noise_scale: float = 1.0
    ) -> Tensor:
        """Draw ``count`` slices (count, positions) from the VAE ``index``, times ``gain``."""
        sample: Sampler = self.decoders[index].sampler(gain)  # type: ignore[operator]
        slices = torch.empty(count, math.prod(self.layers[index].kernel_size))
        for start in range(0, count, CHUNK):
            sample(slices[start : start + CHUNK], stream, noise_scale)
        return slices


def _trained_layer(record: Mapping[str, Any]) -> TrainedLayer:
    kernel_size, fan_in, depth = tuple(record["kernel_size"]), record["fan_in"], float(record["depth"])
    if not kernel_size or not all(type(extent) is int and extent > 0 for extent in kernel_size):
        raise ValueError(f"layer {record['name']!r}: kernel_size {kernel_size} has no positive whole extents")
    if type(fan_in) is not int or fan_in < 1:
        raise ValueError(f"layer {record['name']!r}: expected a positive whole fan_in, got {fan_in!r}")
    if not 0 <= depth <= 1:
        raise ValueError(f"layer {record['name']!r}: expected a depth from 0 to 1, got {depth}")
    std = float(record.get("std", math.sqrt(2 / fan_in)))
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"layer {record['name']!r}: expected a positive std, got {std}")
    return TrainedLayer(str(record["name"]), kernel_size, fan_in, depth, std)


def _decoder(sizes: Mapping[str, Any], kernel_size: Shape) -> nn.Module:
    latent, hidden, name = sizes["latent"], sizes["hidden"], sizes["decoder"]
    for key, value in (("latent", latent), ("hidden", hidden)):
        if type(value) is not int or value < 1:
            raise ValueError(f"sizes.{key}: expected a positive whole number, got {value!r}")
    if name == "slice":
        return SliceDecoder(latent, hidden, math.prod(kernel_size))
    if name == "paper":
        return PaperDecoder(latent, hidden, kernel_size)
    raise ValueError(f"sizes.decoder: expected 'slice' or 'paper', got {name!r}")


def _times(kernel_size: Shape) -> str:
    return "x".join(str(extent) for extent in kernel_size)
