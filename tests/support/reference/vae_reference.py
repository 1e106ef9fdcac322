"""Slow twin of the slice VAEs, from the paper's description and the formulas: slice by slice, in float64."""

from __future__ import annotations

import math

import torch


def elu(x):
    return x if x > 0 else math.exp(x) - 1


def slice_decoder(tensors, z):
    """Return m(z) and s(z) of one latent vector: (m, s) = W2 h + b2, h = W1 z + b1 clamped to [-1, 1]."""
    w1, b1 = tensors["inner.weight"].double(), tensors["inner.bias"].double()
    w2, b2 = tensors["outer.weight"].double(), tensors["outer.bias"].double()
    hidden = [sum(w1[j, i] * z[i] for i in range(len(z))) + b1[j] for j in range(len(b1))]
    hidden = [min(1.0, max(-1.0, float(value))) for value in hidden]
    out = [sum(w2[k, j] * hidden[j] for j in range(len(hidden))) + b2[k] for k in range(len(b2))]
    return torch.stack(out[:-1]), min(3.0, max(-3.0, float(out[-1])))


def cholesky_factor(tensors):
    """Lower triangular L: the stored strict triangle, and the exponentials of the stored diagonal."""
    stored = tensors["spread"].double()
    factor = torch.zeros_like(stored)
    for row in range(len(stored)):
        for column in range(row):
            factor[row, column] = stored[row, column]
        factor[row, row] = math.exp(stored[row, row])
    return factor


def slice_sample(tensors, z, noise):
    """Return one raw slice: mean + std e^s (m + L noise)."""
    shape, log_scale = slice_decoder(tensors, z)
    x = math.exp(log_scale) * (shape + cholesky_factor(tensors) @ noise)
    return tensors["mean"].double() + tensors["std"].double() * x


def paper_sample(tensors, z, kernel_size):
    """Return the mean for one latent vector: 1x1 to 2h, ELU, transposed k x k to h, ELU, 1x1 to 1."""
    first, first_bias = tensors["layers.1.weight"].double(), tensors["layers.1.bias"].double()
    wide = [elu(float(first[j, :, 0, 0] @ z + first_bias[j])) for j in range(len(first_bias))]
    transposed, bias = tensors["layers.3.weight"].double(), tensors["layers.3.bias"].double()
    last, last_bias = tensors["layers.5.weight"].double(), tensors["layers.5.bias"].double()
    height, width = kernel_size
    out = torch.zeros(height * width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            # A transposed convolution of a single pixel stamps the kernel, scaled by the pixel's value.
            channels = [
                elu(float(sum(wide[i] * transposed[i, j, row, column] for i in range(len(wide))) + bias[j]))
                for j in range(len(bias))
            ]
            value = sum(last[0, j, 0, 0] * channels[j] for j in range(len(channels))) + last_bias[0]
            out[row * width + column] = value
    return out


def log_marginal(tensors, x, limit=9.0, steps=4001):
    """Return log p(x) of one standardised slice for a VAE with one latent, by quadrature over z."""
    covariance = cholesky_factor(tensors) @ cholesky_factor(tensors).T
    grid = torch.linspace(-limit, limit, steps, dtype=torch.float64)
    logs = []
    for z in grid:
        shape, log_scale = slice_decoder(tensors, z[None])
        s = math.exp(log_scale)
        law = torch.distributions.MultivariateNormal(s * shape, s * s * covariance)
        logs.append(law.log_prob(x.double()) - 0.5 * z * z - 0.5 * math.log(2 * math.pi))
    return float(torch.logsumexp(torch.stack(logs), 0) + math.log(2 * limit / (steps - 1)))
