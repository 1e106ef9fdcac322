"""Measure slice VAEs on held-out networks: reconstruction, evidence, and likeness of samples to slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_geninit._utils.tables import Table
from torch_geninit.generators.rng import noise_stream
from torch_geninit.training.data.kernels import LayerSlices, read_layers
from torch_geninit.training.loops.vae_encoders import TrainedVAEs, evidence

SAMPLES = 100_000
"""Slices drawn from each VAE."""
LIKELIHOOD_SLICES = 2_000
LIKELIHOOD_DRAWS = 64
"""Held-out slices, and draws of z for each, for the importance-weighted estimate of log p(x)."""
NEAREST_QUERIES = 1_000
NEAREST_AMONG = 50_000
"""Slices whose nearest training slice is looked for, and training slices to look among, at most."""


@torch.no_grad()
def evaluate_vaes(
    zoo: str | Path, trained: TrainedVAEs, *, others: str | Path | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure every VAE on the networks it was not trained on, those of ``others`` on every fifth slice.

    ``others`` is the folder that :func:`train_vaes` had.

    All values but ``raw_mse`` are in units of the training slices' standard deviation at each kernel
    position, so that recipes and layers compare; densities are in nats per slice. Each record has:

    - ``mse``, ``raw_mse``: error of reconstruction through the posterior mean, per value.
    - ``divergence``, ``active``: KL of posterior and prior; number of latents whose posterior mean has a
      variance over 0.01.
    - ``elbo``, ``log_likelihood``: lower bound and importance-weighted estimate of log p(x).
    - ``normal``, ``covariance``: log p(x) under a normal distribution of independent values, of one mean
      and scale, as He initialisation draws, and under one with the full covariance; both fitted on training
      slices.
    - ``std_ratio``, ``std_ratio_low``, ``std_ratio_high``: samples over held-out slices, of all values and at
      the kernel positions where it is lowest and highest.
    - ``correlation_difference``: largest entry of the difference between the correlation matrices (kernel
      positions) of samples and held-out slices; ``correlation_train`` the same of training and held-out
      slices, ``correlation_halves`` of two halves of the held-out slices.
    - ``kurtosis``, ``kurtosis_held_out``: fourth standardised moment, mean over positions; 3 is normal.
    - ``spectral_ratio``: largest singular value of held-out weights (filters x rest) over that of the same
      slices in random order; 1 means that slices know nothing of each other, or come from several layers.
    - ``nearest_ratio``: median distance of samples to their nearest training slice over that of held-out
      slices; near 0 for copies of what was trained on, 1 for what is as new as an unseen network's.
    """
    train, held_out = (
        read_layers(zoo, names, others, whole_first=trained.recipe.whole_first, held_out=out)
        for names, out in ((trained.train, False), (trained.held_out, True))
    )
    found = [layer.layer.name for layer in held_out]
    expected = [layer.name for layer in trained.generator.layers]
    if found != expected:
        raise ValueError(
            f"the networks to measure on have the layers {found}, the VAEs {expected}; "
            "pass the zoo and the others that they were trained on"
        )
    records = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, (seen, unseen) in enumerate(zip(train, held_out, strict=True)):
            record = {
                "layer": seen.layer.name,
                "train_slices": len(seen.all),
                "held_out_slices": len(unseen.all),
            }
            mean, std = seen.all.mean(0), seen.all.std(0)
            x = (unseen.all - mean) / std
            record |= _reconstruction(trained, index, unseen.all, std)
            record |= _normal_laws((seen.all - mean) / std, x)
            drawn = trained.generator.draw(index, SAMPLES, noise_stream(seed, seen.layer.name))
            drawn = (drawn - mean) / std
            record |= _samples(drawn, x, seen, unseen)
            record["spectral_ratio"] = _spectral_ratio(unseen)
            record["nearest_ratio"] = nearest_ratio(drawn, x, (seen.all - mean) / std)
            records.append(record)
    return records


def _reconstruction(trained: TrainedVAEs, index: int, raw: Tensor, std: Tensor) -> dict[str, float]:
    decoder, encoder = trained.generator.decoders[index], trained.encoders[index]
    own_mean, own_std = getattr(decoder, "mean", 0.0), getattr(decoder, "std", torch.ones_like(std))
    x = (raw - own_mean) / own_std
    posterior_mean, _ = encoder(x)
    shape, log_scale = decoder(posterior_mean)
    error = (shape * log_scale.exp() - x) * own_std
    terms = evidence(decoder, encoder, x, trained.recipe.variance)
    # From a density of the VAE's own units to one of the common units.
    units = (std / own_std).log().sum().item()
    few = x[torch.randperm(len(x))[:LIKELIHOOD_SLICES]]
    weights = torch.stack(
        [evidence(decoder, encoder, few, trained.recipe.variance).log_weight for _ in range(LIKELIHOOD_DRAWS)]
    )
    gap = (weights.logsumexp(0) - math.log(LIKELIHOOD_DRAWS) - weights.mean(0)).mean().item()
    divergence = terms.divergence.mean().item()
    elbo = terms.log_likelihood.mean().item() - divergence + units
    return {
        "mse": (error / std).square().mean().item(),
        "raw_mse": error.square().mean().item(),
        "divergence": divergence,
        "active": int((posterior_mean.var(0) > 0.01).sum()),
        "elbo": elbo,
        "log_likelihood": elbo + gap,
    }


def _normal_laws(seen: Tensor, x: Tensor) -> dict[str, float]:
    one = torch.distributions.Normal(seen.mean(), seen.std())
    full = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov().view(seen.shape[1], -1))
    return {
        "normal": one.log_prob(x).sum(1).mean().item(),
        "covariance": full.log_prob(x).mean().item(),
    }


def _samples(drawn: Tensor, x: Tensor, seen: LayerSlices, unseen: LayerSlices) -> dict[str, float]:
    ratio = drawn.std(0) / x.std(0)
    correlation = x.T.corrcoef()
    networks = len(unseen.values)
    if networks > 1:
        halves = [part.flatten(0, 1) for part in unseen.values.tensor_split([networks // 2])]
    else:
        halves = [unseen.all[0::2], unseen.all[1::2]]
    return {
        "std_ratio": (drawn.std() / x.std()).item(),
        "std_ratio_low": ratio.min().item(),
        "std_ratio_high": ratio.max().item(),
        "correlation_difference": _largest(drawn.T.corrcoef() - correlation),
        "correlation_train": _largest(seen.all.T.corrcoef() - correlation),
        "correlation_halves": _largest(halves[0].T.corrcoef() - halves[1].T.corrcoef()),
        "kurtosis": _kurtosis(drawn),
        "kurtosis_held_out": _kurtosis(x),
    }


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _kurtosis(x: Tensor) -> float:
    centred = x - x.mean(0)
    return (centred.pow(4).mean(0) / centred.square().mean(0).square()).mean().item()


def _spectral_ratio(slices: LayerSlices) -> float:
    shuffled = torch.stack([network[torch.randperm(len(network))] for network in slices.values])
    norms = [
        torch.linalg.matrix_norm(values.reshape(len(values), slices.filters, -1), 2).mean()
        for values in (slices.values, shuffled)
    ]
    return (norms[0] / norms[1]).item()


def nearest_ratio(drawn: Tensor, unseen: Tensor, seen: Tensor) -> float:
    """Return the median distance of ``drawn`` to the nearest of ``seen`` over that of ``unseen``."""

    def some(slices: Tensor, most: int) -> Tensor:
        return slices[torch.randperm(len(slices))[:most]]

    def median(slices: Tensor) -> float:
        # Through a product of matrices, distances of a thousandth of the norm would vanish.
        away = torch.cdist(slices, among, compute_mode="donot_use_mm_for_euclid_dist")
        return away.amin(1).median().item()

    among = some(seen, NEAREST_AMONG)
    return median(some(drawn, NEAREST_QUERIES)) / median(some(unseen, NEAREST_QUERIES))


COLUMNS: Mapping[str, tuple[str, str]] = {
    "reconstruction error": ("mse", ".3f"),
    "raw": ("raw_mse", ".1e"),
    "KL": ("divergence", ".2f"),
    "active latents": ("active", "d"),
    "ELBO": ("elbo", ".2f"),
    "log p": ("log_likelihood", ".2f"),
    "log p, normal": ("normal", ".2f"),
    "log p, covariance": ("covariance", ".2f"),
    "std ratio": ("std_ratio", ".3f"),
    "corr. diff.": ("correlation_difference", ".3f"),
    "train": ("correlation_train", ".3f"),
    "halves": ("correlation_halves", ".3f"),
    "kurtosis": ("kurtosis", ".2f"),
    "held out": ("kurtosis_held_out", ".2f"),
    "spectral ratio": ("spectral_ratio", ".2f"),
    "nearest ratio": ("nearest_ratio", ".2f"),
}
"""Heading -> key of a record and its format."""


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records of :func:`evaluate_vaes` as a markdown table: a line a layer, and their mean."""
    last = {
        "layer": "mean",
        **{key: sum(record[key] for record in records) / len(records) for key, _ in COLUMNS.values()},
    }
    last["active"] = round(last["active"])
    rows = [
        (
            record["layer"].removesuffix(".weight"),
            *(format(record[key], style) for key, style in COLUMNS.values()),
        )
        for record in [*records, last]
    ]
    return Table(("layer", *COLUMNS), rows, numbers=range(1, 1 + len(COLUMNS))).markdown() + "\n"
