"""What tests of VAEs share: the slow twin, VAEs of random tensors, zoos of known law."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file
from torch import nn

from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.planning.build import plan_layers
from torch_geninit.training.networks.resnet import resnet20


def record(name="conv", kernel_size=(3, 3), fan_in=36, depth=0.5, std=0.5, inputs=1, depthwise=False):
    sizes = {"kernel_size": list(kernel_size), "fan_in": fan_in, "inputs": inputs, "depthwise": depthwise}
    return {"name": name, "depth": depth, "std": std, **sizes}


def random_vaes(*layers, decoder="slice", latent=3, hidden=5, seed=0, **config):
    """VAEs with random tensors, so that every one of them matters."""
    sizes = {"decoder": decoder, "latent": latent, "hidden": hidden, "layers": list(layers) or [record()]}
    generator = SliceVAEs({"sizes": sizes, **config}).requires_grad_(False).eval()
    noise = torch.Generator().manual_seed(seed)
    for name, tensor in generator.state_dict().items():
        tensor.normal_(generator=noise).mul_(0.5)
        if name.endswith("std"):
            tensor.abs_().add_(0.1)
    return generator


def tensors_of(generator, index=0):
    prefix = f"decoders.{index}."
    return {k.removeprefix(prefix): v for k, v in generator.state_dict().items() if k.startswith(prefix)}


def drawn(generator, module, seed=0, noise_scale=1.0, name=""):
    plan = plan_layers(module, generator, "test", name=name)
    return {k: t.expand() for k, t in generator.predict(plan, seed=seed, noise_scale=noise_scale).items()}


def make_zoo(folder, networks, seed=0):
    """Networks of one law: smooth slices, Student-t with six degrees of freedom, one scale."""
    stream = torch.Generator().manual_seed(seed)
    place = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    covariance = torch.exp(-torch.cdist(place, place))
    root = torch.linalg.cholesky(covariance)
    for network in range(networks):
        state = {}
        for name, module in resnet20().named_modules():
            if isinstance(module, nn.Conv2d):
                shape = module.weight.shape
                normal = torch.randn(shape[0] * shape[1], 9, generator=stream) @ root.T
                chi = torch.randn(len(normal), 6, generator=stream).square().mean(1, keepdim=True)
                state[f"{name}.weight"] = (0.1 * normal / chi.sqrt()).view(shape).contiguous()
        save_file(state, folder / f"{network}.safetensors")
    return covariance


def make_other(folder, name="0"):
    """A network of two 1x1, one 5x5 and two 3x3 convolutions, the second 1x1 twice He's scale."""
    torch.manual_seed(0)
    layers = {
        "a": torch.randn(64, 16, 1, 1) * math.sqrt(2 / 16),
        "b": torch.randn(16, 64, 5, 5),
        "c": torch.randn(16, 16, 3, 3),
        "d": torch.randn(16, 64, 1, 1) * math.sqrt(2 / 64) * 2,
        "dw": torch.randn(400, 1, 3, 3),
    }
    order = json.dumps([f"{key}.weight" for key in layers])
    state = {f"{key}.weight": value for key, value in layers.items()}
    save_file(state | {"norm.weight": torch.ones(3)}, folder / f"{name}.safetensors", {"convolutions": order})
    return layers
