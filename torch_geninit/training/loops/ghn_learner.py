"""What a step of training changes: a hypernetwork, the average of its weights, the state of its optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torch_geninit.generators.ghn.model import GraphHyperNetwork
from torch_geninit.training.loops.ghn_curriculum import Batch


class Average:
    """Exponential moving average of a generator's weights."""

    def __init__(self, generator: GraphHyperNetwork, decay: float = 0.999) -> None:
        self.generator = copy.deepcopy(generator)
        self.decay = decay

    @torch.no_grad()
    def update(self, generator: GraphHyperNetwork, step: int) -> None:
        # A short memory at first, or the random start would weigh in for a thousand steps.
        decay = min(self.decay, (step + 1) / (step + 10))
        mine: list[Tensor] = list(self.generator.parameters())
        other: list[Tensor] = list(generator.parameters())
        torch._foreach_lerp_(mine, other, 1 - decay)


class Learner:
    """A hypernetwork in training.

    Args:
        generator: to train.
        objective: its loss, see :class:`~torch_geninit.training.loops.ghn_loss.Objective`, wrapped or not.
        lr: of AdamW; every step sets its own.
    """

    def __init__(self, generator: GraphHyperNetwork, objective: nn.Module, lr: float) -> None:
        self.generator, self.objective = generator, objective
        self.average = Average(generator)
        self.optimizer = torch.optim.AdamW(
            generator.parameters(), lr, betas=(0.9, 0.99), weight_decay=1e-5, fused=True
        )

    def step(self, number: int, batch: Batch, lr: float) -> dict[str, Tensor]:
        """Take step ``number`` at the rate ``lr``; return the parts of the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, parts = self.objective(batch.networks, batch.images, batch.labels, batch.draws or None)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        self.optimizer.step()
        self.average.update(self.generator, number)
        found: dict[str, Tensor] = parts
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.average.generator.load_state_dict(state["average"])
        state["optimizer"]["param_groups"][0]["fused"] = True  # checkpoints of older versions say None
        self.optimizer.load_state_dict(state["optimizer"])
