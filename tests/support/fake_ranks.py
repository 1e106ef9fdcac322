"""One rank of many without the others, and a network to spread over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

_times = 0


def mesh_of(*shape: int) -> DeviceMesh:
    # DTensor caches by mesh, and with it the rank of whoever asked first: no two meshes may be equal.
    names = tuple(f"{_times}_{dim}" for dim in range(len(shape)))
    return DeviceMesh("cpu", torch.arange(torch.Size(shape).numel()).view(shape), mesh_dim_names=names)


@contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    """Be one rank of many without the others: a collective would leave wrong values, not hang."""
    global _times
    _times += 1
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 18, 3, padding=1),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(18, 10),
    )
