"""The ways to spread a model over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.nn.parallel import DistributedDataParallel

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator

Way = Callable[[nn.Module, "World"], nn.Module]


@dataclass
class World:
    """This rank's view: generators by kind, and meshes over all ranks."""

    rank: int
    size: int
    generators: Mapping[str, WeightGenerator]
    meshes: dict[tuple[str, ...], DeviceMesh] = field(default_factory=dict)

    def mesh(self, *names: str) -> DeviceMesh:
        """All ranks along one dimension, or half of them along the second of two."""
        if names not in self.meshes:
            shape = (self.size,) if len(names) == 1 else (self.size // 2, 2)
            self.meshes[names] = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return self.meshes[names]

    def ghn_(self, model: nn.Module, **options: Any) -> nn.Module:
        return geninit.ghn_(model, pretrained=self.generators["ghn"], **options)

    def noise_ghn_(self, model: nn.Module, **options: Any) -> nn.Module:
        return geninit.noise_ghn_(model, 5, pretrained=self.generators["noise-ghn"], **options)

    def vae_(self, model: nn.Module, graph: object = None) -> nn.Module:
        return geninit.vae_(model, pretrained=self.generators["vae"], seed=5)


def net(classes: int = 10) -> nn.Module:
    """Extents that few numbers divide: one of four ranks gets none of the second layer's filters."""
    return nn.Sequential(
        nn.Conv2d(3, 18, 3, padding=1),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.Conv2d(18, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def seeded(classes: int = 10, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return net(classes).to(dtype)


# How a model may be spread over ranks.


def distributed(
    model: nn.Module, mesh: DeviceMesh, placements: Callable[[Tensor], list[Placement]]
) -> nn.Module:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            shard = distribute_tensor(p.detach(), mesh, placements(p), src_data_rank=None)
            module.register_parameter(name, nn.Parameter(shard))
    return model


def fsdp(model: nn.Module, world: World) -> nn.Module:
    fully_shard(model[0], mesh=world.mesh("all"))  # type: ignore[index]
    return fully_shard(model, mesh=world.mesh("all"))


def fsdp_replicated(model: nn.Module, world: World) -> nn.Module:
    return fully_shard(model, mesh=world.mesh("copies", "shards"))


def fsdp_by_columns(model: nn.Module, world: World) -> nn.Module:
    def placement(p: nn.Parameter) -> Shard | None:
        return Shard(1) if p.ndim == 2 and p.shape[1] % world.size == 0 else None

    return fully_shard(model, mesh=world.mesh("all"), shard_placement_fn=placement)


def fsdp_offloaded(model: nn.Module, world: World) -> nn.Module:
    return fully_shard(model, mesh=world.mesh("all"), offload_policy=CPUOffloadPolicy(pin_memory=False))


def rows(model: nn.Module, world: World) -> nn.Module:
    return distributed(model, world.mesh("all"), lambda p: [Shard(0)])


def columns(model: nn.Module, world: World) -> nn.Module:
    return distributed(model, world.mesh("all"), lambda p: [Shard(1) if p.ndim > 1 else Replicate()])


def rows_and_columns(model: nn.Module, world: World) -> nn.Module:
    mesh = world.mesh("rows", "columns")
    return distributed(model, mesh, lambda p: [Shard(0), Shard(1) if p.ndim > 1 else Shard(0)])


def kernel_positions(model: nn.Module, world: World) -> nn.Module:
    return distributed(model, world.mesh("all"), lambda p: [Shard(p.ndim - 1)])


def ddp(model: nn.Module, world: World) -> nn.Module:
    return DistributedDataParallel(model)


PARALLEL = {"7": ColwiseParallel(), "9": RowwiseParallel()}


def tensor_parallel(model: nn.Module, world: World) -> nn.Module:
    return parallelize_module(model, world.mesh("all"), PARALLEL)


def fsdp_over_tensor_parallel(model: nn.Module, world: World) -> nn.Module:
    mesh = world.mesh("data", "tensor")
    parallelize_module(model, mesh["tensor"], PARALLEL)
    return fully_shard(model, mesh=mesh["data"])


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        fsdp,
        fsdp_replicated,
        fsdp_by_columns,
        fsdp_offloaded,
        rows,
        columns,
        rows_and_columns,
        kernel_positions,
        ddp,
        tensor_parallel,
        fsdp_over_tensor_parallel,
    )
}
