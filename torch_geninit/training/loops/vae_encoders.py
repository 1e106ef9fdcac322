"""The half of a VAE that is not shipped: recipe, encoders, and the evidence lower bound that trains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geninit.generators.vae.model import SliceVAEs


@dataclass(frozen=True)
class VAERecipe:
    """How slice VAEs are trained.

    Attributes:
        decoder: ``"slice"`` or ``"paper"``, as in the generator's config; the encoder goes with it.
        latent, hidden: sizes.
        standardise: train on slices of zero mean and unit variance at each kernel position.
        variance: of the likelihood; None learns a covariance with the decoder and samples it too.
        scale: of generated layers, ``"learned"`` or ``"he"``, as in the generator's config.
        whole_first: draw whole filters of the first convolution, whose inputs are colours in every network.
        lr: of Adam, decaying linearly to 0.
        epochs: for the layer with the fewest slices and for the one with the most.
        batch_size: slices a step.
    """

    decoder: str
    latent: int
    hidden: int
    standardise: bool
    variance: float | None
    scale: str = "learned"
    whole_first: bool = False
    lr: float = 0.01
    epochs: tuple[int, int] = (150, 4)
    batch_size: int = 128


class Encoder(nn.Module):
    """Approximate posterior of a slice's latents: perceptron with two hidden layers."""

    def __init__(self, positions: int, latent: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(positions, hidden),
            nn.ELU(),
            nn.Linear(hidden, hidden),
            nn.ELU(),
            nn.Linear(hidden, 2 * latent),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of z, (N, latent) each."""
        mean, log_variance = self.layers(x).chunk(2, 1)
        return mean, log_variance


class PaperEncoder(Encoder):
    """Encoder of Harder et al. 2023: two k x k convolutions with padding, one without, then 1x1."""

    def __init__(self, kernel_size: Sequence[int], latent: int, hidden: int) -> None:
        nn.Module.__init__(self)
        size: Any = tuple(kernel_size)  # any number of extents
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, *size)),
            nn.Conv2d(1, hidden, size, padding="same"),
            nn.ELU(),
            nn.Conv2d(hidden, hidden, size, padding="same"),
            nn.ELU(),
            nn.Conv2d(hidden, 2 * hidden, size),
            nn.ELU(),
            nn.Conv2d(2 * hidden, 2 * latent, 1),
            nn.Flatten(),
        )


@dataclass(frozen=True)
class TrainedVAEs:
    """Slice VAEs with what only training and measuring need.

    Attributes:
        generator: what is shipped.
        encoders: one for each decoder.
        recipe: they were trained by.
        train, held_out: names of the zoo's networks.
    """

    generator: SliceVAEs
    encoders: nn.ModuleList
    recipe: VAERecipe
    train: tuple[str, ...]
    held_out: tuple[str, ...]


class Terms(NamedTuple):
    """Parts of the evidence lower bound for each slice, in nats: ELBO = log_likelihood - divergence.

    ``log_weight`` is log p(x, z) - log q(z | x), whose mean exponential over draws of z estimates p(x).
    """

    log_likelihood: Tensor
    divergence: Tensor
    log_weight: Tensor


def evidence(decoder: nn.Module, encoder: nn.Module, x: Tensor, variance: float | None) -> Terms:
    """Evaluate the evidence lower bound of slices ``x`` (N, positions) with one draw of z for each."""
    mean, log_variance = encoder(x)
    noise = torch.randn_like(mean)
    z = mean + (0.5 * log_variance).exp() * noise
    log_likelihood = log_density(decoder, x, z, variance)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    log_ratio = 0.5 * (noise**2 + log_variance - z**2).sum(1)
    return Terms(log_likelihood, divergence, log_likelihood + log_ratio)


def log_density(decoder: nn.Module, x: Tensor, z: Tensor, variance: float | None) -> Tensor:
    """Return log p(x | z) for each slice: x = e^s (m + L eps); ``variance``, if given, stands for L^2."""
    mean, log_scale = decoder(z)
    residual = x * (-log_scale).exp() - mean
    positions = x.shape[1]
    if variance is None:
        factor: Tensor = decoder.factor()  # type: ignore[operator]
        residual = torch.linalg.solve_triangular(factor, residual.t(), upper=False).t()
        log_determinant = factor.diagonal().log().sum()
    else:
        residual = residual / math.sqrt(variance)
        log_determinant = residual.new_tensor(positions / 2 * math.log(variance))
    log_normal = -0.5 * (residual**2 + math.log(2 * math.pi)).sum(1)
    return log_normal - log_determinant - positions * log_scale[:, 0]
