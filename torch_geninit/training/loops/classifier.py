"""Train and measure one image classifier by a fixed recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.data.images import Augment, Split
from torch_geninit.training.operators.precision import bfloat16_if
from torch_geninit.training.runs.checkpoint import Run

Optimizer = Literal["sgd", "adam", "adamw", "muon"]


class Phase(NamedTuple):
    """Epochs at one image resolution; small images make early epochs cheap."""

    resolution: int
    epochs: int


@dataclass(frozen=True)
class Recipe:
    """How to train a classifier.

    The rate rises linearly over ``warmup`` of all steps, then falls linearly to 0.

    Attributes:
        optimizer: ``"sgd"`` with Nesterov momentum; ``"adam"`` or ``"adamw"``, whose first beta is
            ``momentum``; or ``"muon"``: orthogonalised momentum for convolution kernels but depthwise ones
            (``lr`` is theirs) beside SGD at 0.1 for the rest, which learns more from each image.
        falling: False keeps the rate where it is after the warm-up, as in the first of many epochs.
        augment, shift: what :meth:`Split.shuffled_batches` does to images; pixels of the whole image.
        amp: autocast to bfloat16, twice as fast on GPUs and on CPUs with bfloat16 instructions.
    """

    phases: Sequence[Phase]
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    warmup: float = 0.2
    augment: Augment = "flip-crop"
    shift: int = 4
    optimizer: Optimizer = "sgd"
    amp: bool = False
    falling: bool = True

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def resolution(self, epoch: int) -> int:
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.resolution
            epoch -= phase.epochs
        raise IndexError(f"the recipe has {self.epochs} epochs")

    def share_of_lr(self, progress: float) -> float:
        """Share of the peak learning rate at ``progress`` in [0, 1]."""
        rising = progress / self.warmup if self.warmup else math.inf
        return min(rising, (1 - progress) / (1 - self.warmup) if self.falling else 1.0)


class Score(NamedTuple):
    accuracy: float
    nll: float


@torch.no_grad()
def logits_of(model: nn.Module, data: Split) -> Tensor:
    """Return the logits (N, classes) of ``model`` in eval mode; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits = torch.cat([model(images.to(device)).float().cpu() for images, _ in data.batches()])
    model.train(was_training)
    return logits


def score(model: nn.Module, data: Split) -> Score:
    """Measure accuracy and mean negative log likelihood (nats) of ``model`` in eval mode."""
    logits = logits_of(model, data)
    labels = data.labels.cpu()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return Score(accuracy, F.cross_entropy(logits, labels).item())


def diverged(model: nn.Module) -> bool:
    """Tell whether training has left a value of ``model`` that is not finite."""
    return not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def train_classifier(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    *,
    seed: int,
    run: Run | None = None,
    after_epoch: Callable[[int, dict[str, Any]], None] | None = None,
    description: str = "training",
) -> nn.Module:
    """Train ``model`` in place; with ``run``, resume from its checkpoint and save one after every epoch.

    Raises:
        ValueError: if the images don't fill a batch.
    """
    from tqdm.auto import tqdm

    train.check_batch(recipe.batch_size)
    steps = len(train) // recipe.batch_size
    model.train()
    device = next(model.parameters()).device
    optimizer = KernelOptimizer(model, recipe)
    generator = torch.Generator().manual_seed(seed)
    first = 0
    state = run.resume() if run else None
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first = state["epoch"]
    progress = tqdm(
        total=recipe.epochs * steps,
        initial=first * steps,
        desc=description,
        unit="step",
        mininterval=1,
    )
    for epoch in range(first, recipe.epochs):
        resolution = recipe.resolution(epoch)
        total = 0.0
        batches = train.shuffled_batches(
            recipe.batch_size, generator, augment=recipe.augment, shift=recipe.shift
        )
        for step, (images, labels) in enumerate(batches):
            rate = recipe.share_of_lr((epoch * steps + step) / (recipe.epochs * steps))
            optimizer.set_lr(rate)
            images = resize(images.to(device), resolution)
            with bfloat16_if(recipe.amp, device.type):
                logits = model(images).float()
            loss = F.cross_entropy(logits, labels.to(device))
            model.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            progress.update()
        metrics = {"epoch": epoch + 1, "loss": total / steps, "lr_share": rate}
        if after_epoch:
            after_epoch(epoch, metrics)
        progress.set_postfix(loss=f"{metrics['loss']:.3f}")
        if run:
            run.log(**metrics)
            run.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "epoch": epoch + 1,
                }
            )
    progress.close()
    return model


class KernelOptimizer:
    """The optimizers of a recipe behind one face: Muon on kernels if asked for, another on the rest."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        parameters = list(model.parameters())
        # Muon makes kernel positions of a depthwise convolution equally loud and uncorrelated: its filters,
        # which share no inputs, would lose what shapes they have.
        dense = [p for p in parameters if p.ndim == 4 and p.shape[1] > 1]
        self.kernels = dense if recipe.optimizer == "muon" else []
        # torch's Muon takes matrices only; these share the kernels' storage.
        self.matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in self.kernels]
        special = {id(p) for p in self.kernels}
        self.optimizers = [_optimizer([p for p in parameters if id(p) not in special], recipe)]
        if self.kernels:
            muon = torch.optim.Muon(self.matrices, recipe.lr, weight_decay=0.0, momentum=recipe.momentum)
            self.optimizers.append(muon)
        self.peak = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def set_lr(self, share: float) -> None:
        """Set every rate to ``share`` of its peak."""
        for optimizer, peak in zip(self.optimizers, self.peak, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * peak

    def step(self) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(len(kernel), -1)
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(i)])


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, recipe.lr, (recipe.momentum, 0.999), weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters,
        0.1 if recipe.optimizer == "muon" else recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def resize(images: Tensor, resolution: int) -> Tensor:
    """Resample square images to ``resolution``, averaging what is thrown away; no-op at that resolution."""
    if images.shape[-1] == resolution:
        return images
    small = F.interpolate(
        images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False
    )
    return small.contiguous(memory_format=torch.channels_last)
