"""The processes of a training run: one, or those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process among all of a run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """Join the processes that ``torchrun`` started; without it stay alone.

        They talk over nccl if each has a GPU of its own, else over gloo: networks this small leave a GPU
        waiting for the processor, so several processes may well share one.
        """
        if "RANK" not in os.environ:
            return cls()
        if not distributed.is_initialized():
            own = device.startswith("cuda") and torch.cuda.device_count() >= int(
                os.environ["LOCAL_WORLD_SIZE"]
            )
            if device.startswith("cuda"):
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            distributed.init_process_group("nccl" if own else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and metrics."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Let the ranks average the gradients of ``module``."""
        if self.size == 1:
            return module
        # A network uses some parts of the decoder only, and each rank sees other networks.
        return DistributedDataParallel(module, find_unused_parameters=True)
