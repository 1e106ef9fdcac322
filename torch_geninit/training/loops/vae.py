"""Train slice VAEs on a zoo: one for each convolution of ResNet-20, from the kernels of many networks."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.generators.vae.decoders import SliceDecoder
from torch_geninit.generators.vae.model import SliceVAEs
from torch_geninit.training.data.kernels import LayerSlices, read_layers, split_networks, zoo_networks
from torch_geninit.training.loops.vae_encoders import (
    Encoder,
    PaperEncoder,
    TrainedVAEs,
    VAERecipe,
    evidence,
)
from torch_geninit.training.runs.checkpoint import Run

# With a learned covariance, 8 latents and 32 hidden units gain no held-out likelihood and sample more slowly.
# The scale of trained weights is their optimiser's (several times He's where steps have a fixed norm and
# nothing decays), and a network without norm layers multiplies it up layer by layer.
RECIPES = {
    "ours": VAERecipe(
        "slice", latent=2, hidden=16, standardise=True, variance=None, scale="he", whole_first=True
    ),
    "paper": VAERecipe("paper", latent=8, hidden=32, standardise=False, variance=1e-3),
}


def epochs_for(slices: int, fewest: int, most: int, epochs: tuple[int, int]) -> int:
    """Interpolate epochs between the smallest and the largest layer, as a power of the number of slices."""
    if most == fewest:
        return epochs[0]
    share = math.log(slices / fewest) / math.log(most / fewest)
    factor: float = (epochs[1] / epochs[0]) ** share
    return max(1, round(epochs[0] * factor))


def train_vaes(
    zoo: str | Path,
    folder: str | Path,
    *,
    recipe: str | VAERecipe = "ours",
    others: str | Path | None = None,
    seed: int = 0,
) -> TrainedVAEs:
    """Train a VAE for each convolution on four fifths of the zoo's networks.

    Args:
        zoo: folder of state dicts of ResNet-20s, ``<seed>.safetensors``.
        others: folder of other networks, for kernel sizes and depthwise convolutions that ResNet-20 lacks.
        folder: of the run; an interrupted run resumes there after its last finished layer.
        recipe: a name in :data:`RECIPES`, or a recipe.
        seed: of split, initial weights, batches and noise.

    Raises:
        ValueError: if the zoo is too small or broken, or ``folder`` holds a run with another zoo, recipe or
            seed, or one that another process trains.
    """
    from tqdm.auto import tqdm

    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    train, held_out = split_networks(zoo_networks(zoo), seed)
    layers = read_layers(zoo, train, others, whole_first=chosen.whole_first, held_out=False)
    fewest, most = (pick(len(layer.values[0]) for layer in layers) for pick in (min, max))
    trained = _untrained(_config(chosen, layers, train, seed), chosen, train, held_out)
    plan = {"recipe": _plain(chosen), "seed": seed, "train": list(train), "held_out": list(held_out)}
    plan["layers"] = [[layer.layer.name, len(layer.all)] for layer in layers]
    run = Run(folder)
    run.claim()
    state = run.resume() or {"done": 0, **plan}
    if {key: state.get(key) for key in plan} != plan:
        raise ValueError(
            f"{folder} holds a run of another zoo, recipe or seed (or other networks besides); "
            "expected an empty folder or the same run. Choose another folder"
        )
    if state["done"]:
        _load(trained, state)
    epochs = [epochs_for(len(layer.values[0]), fewest, most, chosen.epochs) for layer in layers]
    work = [count * len(layer.training) for count, layer in zip(epochs, layers, strict=True)]
    done = state["done"]
    progress = tqdm(total=sum(work), initial=sum(work[:done]), unit="slice", unit_scale=True, mininterval=1)
    for index in range(done, len(layers)):
        layer = layers[index]
        progress.set_description(layer.layer.name.removesuffix(".weight"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + index)
            _train_layer(trained, index, layer.training, epochs[index], run, progress)
        run.save(
            {
                "done": index + 1,
                **plan,
                "generator": trained.generator.state_dict(),
                "encoders": trained.encoders.state_dict(),
                "card": trained.generator.config,
            }
        )
    progress.close()
    return trained


def load_vaes(folder: str | Path) -> TrainedVAEs:
    """Return the VAEs of a finished run.

    Raises:
        ValueError: if the run is not finished.
    """
    state = Run(folder).peek()
    if state is None or state["done"] < len(state["card"]["sizes"]["layers"]):
        raise ValueError(f"{folder} holds no finished run of VAEs; resume it with train_vaes")
    recipe = VAERecipe(**{**state["recipe"], "epochs": tuple(state["recipe"]["epochs"])})
    trained = _untrained(state["card"], recipe, tuple(state["train"]), tuple(state["held_out"]))
    _load(trained, state)
    return trained


def _train_layer(trained: TrainedVAEs, index: int, raw: Tensor, epochs: int, run: Run, progress: Any) -> None:
    recipe = trained.recipe
    decoder, encoder = trained.generator.decoder(index), trained.encoders[index]
    for module in [*decoder.modules(), *encoder.modules()]:
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    x = raw
    if isinstance(decoder, SliceDecoder):
        if recipe.standardise:
            decoder.mean.copy_(raw.mean(0))
            decoder.std.copy_(raw.std(0))
            x = (raw - decoder.mean) / decoder.std
        _start_at_covariance(decoder, x)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, recipe.lr)
    total = epochs * math.ceil(len(x) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    for epoch in range(epochs):
        elbo, divergence = 0.0, 0.0
        for batch in torch.randperm(len(x)).split(recipe.batch_size):
            terms = evidence(decoder, encoder, x[batch], recipe.variance)
            loss = (terms.divergence - terms.log_likelihood).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            elbo -= loss.item() * len(batch) / len(x)
            divergence += terms.divergence.sum().item() / len(x)
            progress.update(len(batch))
        layer = trained.generator.layers[index].name
        run.log(layer=layer, epoch=epoch + 1, elbo=round(elbo, 4), divergence=round(divergence, 4))


@torch.no_grad()
def _start_at_covariance(decoder: SliceDecoder, x: Tensor) -> None:
    """Start from the normal distribution of ``x``: few filters don't get far from independent values.

    A tenth of the covariance is replaced by its diagonal, as few filters don't determine it either.
    """
    covariance = x.T.cov().view(x.shape[1], -1)
    covariance = 0.9 * covariance + 0.1 * covariance.diagonal().diag()
    factor = torch.linalg.cholesky(covariance)
    decoder.spread.copy_(factor.tril(-1) + torch.diag(factor.diagonal().log()))


def _config(
    recipe: VAERecipe, layers: list[LayerSlices], train: tuple[str, ...], seed: int
) -> dict[str, Any]:
    records = [{**asdict(s.layer), "kernel_size": list(s.layer.kernel_size)} for s in layers]
    sizes = {"decoder": recipe.decoder, "latent": recipe.latent, "hidden": recipe.hidden, "layers": records}
    trained = {"architecture": "ResNet-20", "networks": len(train), "seed": seed, "recipe": _plain(recipe)}
    return {"kind": "vae", "sizes": sizes, "scale": recipe.scale, "trained": trained}


def _untrained(
    config: dict[str, Any], recipe: VAERecipe, train: tuple[str, ...], held_out: tuple[str, ...]
) -> TrainedVAEs:
    generator = SliceVAEs(config)
    encoders = nn.ModuleList(
        PaperEncoder(layer.kernel_size, recipe.latent, recipe.hidden)
        if recipe.decoder == "paper"
        else Encoder(layer.positions, recipe.latent)
        for layer in generator.layers
    )
    return TrainedVAEs(generator, encoders, recipe, train, held_out)


def _load(trained: TrainedVAEs, state: dict[str, Any]) -> None:
    trained.generator.load_state_dict(state["generator"])
    trained.encoders.load_state_dict(state["encoders"])


def _plain(recipe: VAERecipe) -> dict[str, Any]:
    return {**asdict(recipe), "epochs": list(recipe.epochs)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zoo", required=True, help="folder of trained networks, <seed>.safetensors")
    parser.add_argument("--others", help="folder of other networks, for convolutions that ResNet-20 lacks")
    parser.add_argument("--run", required=True, help="folder of the run; an interrupted one resumes")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="ours")
    parser.add_argument(
        "--scale",
        choices=("learned", "he"),
        help="of generated layers: the zoo's, relative to fan-in, or He's; by default the recipe's",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(threads=1)  # the networks are tiny


def main(arguments: argparse.Namespace) -> None:
    """Train, measure on the held-out networks, and write report.json and report.md into the run's folder."""
    from torch_geninit.training.loops.vae_validation import evaluate_vaes, markdown_table

    folder = Path(arguments.run)
    recipe = RECIPES[arguments.recipe]
    if arguments.scale is not None:
        recipe = replace(recipe, scale=arguments.scale)
    trained = train_vaes(arguments.zoo, folder, recipe=recipe, others=arguments.others, seed=arguments.seed)
    records = evaluate_vaes(arguments.zoo, trained, others=arguments.others, seed=arguments.seed)
    (folder / "report.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / "report.md").write_text(markdown_table(records))
