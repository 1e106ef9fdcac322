"""Laws of one kernel slice: decoders that slice VAEs train and sample from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_geninit.graph.architecture import Shape

LOG_SCALE_LIMIT = 3.0
"""Bound on a slice's log-scale: no draw is more than e^3 times wider or narrower than its layer."""

NORMAL_LIMIT = 9.0
"""Bound on normal draws: Box-Muller from uniform numbers of 53 bits reaches 8.6."""

Sampler = Callable[[Tensor, torch.Generator, float], None]
"""Fills its first argument, shape (slices, positions), with draws: (out, noise stream, noise scale)."""


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

    @torch.no_grad()
    def bound(self, noise_scale: float) -> float:
        """Return a bound on the magnitude of a raw slice's values, which is not finite if they may not be."""
        noise = NORMAL_LIMIT * abs(noise_scale)
        # Nothing else may hide behind the clamp of the hidden units.
        hidden = 1 + 0 * (self.inner.weight.abs().sum() * noise + self.inner.bias.abs().sum())
        outer = self.outer.weight.abs().sum(1) * hidden + self.outer.bias.abs()
        shape = outer[:-1] + 0 * outer[-1] + self.factor().abs().sum(1) * noise
        return float((self.mean.abs() + self.std.abs() * shape * math.exp(LOG_SCALE_LIMIT)).max())

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

    @torch.no_grad()
    def bound(self, noise_scale: float) -> float:
        """Return a bound on the magnitude of a slice's values, which is not finite if they may not be."""
        largest = torch.full((1, self.latent), NORMAL_LIMIT * abs(noise_scale))
        # |W x + b| <= |W| |x| + |b|, and |elu(x)| <= |x|.
        magnitudes = {name: tensor.abs() for name, tensor in self.layers.state_dict().items()}
        return float(torch.func.functional_call(self.layers, magnitudes, largest).max())

    def sampler(self, gain: float) -> Sampler:
        """Return a function that draws raw slices times ``gain``."""

        def sample(out: Tensor, stream: torch.Generator, noise_scale: float) -> None:
            z = torch.empty(len(out), self.latent).normal_(0, noise_scale, generator=stream)
            torch.mul(self.layers(z), gain, out=out)

        return sample
