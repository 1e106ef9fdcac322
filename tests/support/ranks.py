"""What every rank of a real process group checks; test_distributed.py starts them and reads what failed."""

from __future__ import annotations

import datetime
import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import _random as dtensor_random
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.nn.parallel import DistributedDataParallel

import torch_geninit as geninit
from tests.conftest import tiny_generator
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Compact
from torch_geninit.parameters import write as writing
from torch_geninit.training.networks.resnet import resnet20

Way = Callable[[nn.Module, "World"], nn.Module]
Verb = Callable[..., nn.Module]


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


# What a verb may and may not do meanwhile.


def whole(parameter: Tensor) -> Tensor:
    """Gather a parameter as torch does it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()


def counted() -> CommDebugMode:
    """Count collectives, without following modules: in torch 2.11 that breaks on one that is called twice."""
    counter = CommDebugMode()
    tracker: Any = counter.advanced_module_tracker
    tracker.__enter__, tracker.__exit__ = lambda: None, lambda *_: None
    tracker.module_parents_dict[tracker.name] = set()
    return counter


@contextmanager
def alone(world: World) -> Iterator[None]:
    """Fail if anything is sent, or the random state moves, which is another one on every rank."""
    torch.manual_seed(world.rank)
    before, tracker = torch.get_rng_state(), dtensor_random._rng_tracker
    with counted() as counter:
        yield
    assert counter.get_total_counts() == 0, counter.get_comm_counts()
    assert torch.equal(torch.get_rng_state(), before)
    assert dtensor_random._rng_tracker is tracker


@contextmanager
def counted_writes() -> Iterator[list[int]]:
    """Count the numbers expanded into parameters, and forbid to expand one whole."""
    numbers: list[int] = []
    part, to = writing.write_part, Compact.write_to
    inside = [False]

    def write_part(compact: Compact, indices: Any, out: Tensor) -> None:
        numbers.append(out.numel())
        inside[0] = True
        part(compact, indices, out)
        inside[0] = False

    def write_to(compact: Compact, out: Tensor, start: int = 0) -> None:
        if not inside[0]:
            numbers.append(out.numel())
        to(compact, out, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_part", write_part)
        patch.setattr(Compact, "write_to", write_to)
        patch.setattr(
            Compact, "expand", lambda compact: pytest.fail(f"{compact.name} was expanded as a whole")
        )
        yield numbers


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(whole(p), q), name


# The checks.


def shards_equal_slices(way: str, verb: str, dtype: torch.dtype) -> Callable[[World], None]:
    def check(world: World) -> None:
        call: Verb = getattr(world, verb)
        graph = geninit.trace(seeded())
        expected = call(seeded(dtype=dtype), graph=graph)
        model = WAYS[way](seeded(dtype=dtype), world)
        with alone(world), counted_writes() as numbers:
            assert call(model, graph=graph) is model
        assert_same(model, expected)
        generated = [p for p in model.parameters() if verb != "vae_" or p.ndim == 4]
        assert sum(numbers) == sum(local(p).numel() for p in generated)

    return check


def a_sharded_model_can_be_traced(world: World) -> None:
    for way in ("fsdp", "columns", "tensor_parallel", "ddp"):
        model = WAYS[way](seeded(), world)
        with alone(world):
            world.ghn_(model)
        assert_same(model, world.ghn_(seeded()))


def nobody_waits_for_anybody(world: World) -> None:
    model = fsdp(seeded(), world)
    for rank in range(world.size):
        if rank == world.rank:
            world.noise_ghn_(model)
        dist.barrier()
    assert_same(model, world.noise_ghn_(seeded()))


def the_counter_counts(world: World) -> None:
    model = fsdp(seeded(), world)
    with pytest.raises(AssertionError, match="allgather|all_gather"), alone(world):
        whole(model[0].weight)  # type: ignore[index]
    with pytest.raises(AssertionError, match="allreduce"), alone(world):
        dist.all_reduce(torch.ones(1))


def meta_models_are_refused_by_name(world: World) -> None:
    with torch.device("meta"):
        model = fsdp(net(), world)
    with pytest.raises(ValueError, match=r"(?s)'0\.weight' can't be written.*meta device.*to_empty"):
        world.ghn_(model)
    model[3].to_empty(device="cpu")  # type: ignore[index]
    with pytest.raises(ValueError, match=r"(?s)'0\.weight' can't be written.*meta device.*to_empty"):
        world.ghn_(model, unfilled="reset")


def materialised(classes: int, world: World, way: Way) -> nn.Module:
    """Build on meta, trace, shard, materialise with values that nothing may keep, initialise."""
    with torch.device("meta"):
        model = net(classes)
    graph = geninit.trace(model)
    model = way(model, world)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            local(tensor).fill_(torch.nan if tensor.is_floating_point() else -1)
    torch.manual_seed(7)
    return world.ghn_(model, graph=graph, unfilled="reset")


def losses(model: nn.Module, steps: int = 5) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stream = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        images = torch.randn(8, 3, 8, 8, generator=stream)
        labels = torch.randint(0, 7, (8,), generator=stream)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def from_meta_it_trains_as_alone(world: World) -> None:
    torch.manual_seed(7)
    # Seven classes: the head is not generated, and its own initialisation is random.
    expected = world.ghn_(seeded(7), unfilled="reset")
    model = materialised(7, world, fsdp)
    assert_same(model, expected)
    for (name, b), c in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(b, c), name
    assert losses(model) == pytest.approx(losses(expected), rel=1e-4)
    for (name, b), c in zip(model.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=name)


def what_is_reset_is_the_slice_too(world: World) -> None:
    torch.manual_seed(7)
    expected = world.ghn_(seeded(7), unfilled="reset")
    for way in (columns, rows_and_columns, fsdp_over_tensor_parallel):
        with counted() as counter:
            model = materialised(7, world, way)
        assert counter.get_total_counts() == 0, way.__name__
        assert_same(model, expected)


def gathered_parameters_are_refused_by_name(world: World) -> None:
    model = fsdp(seeded(), world)
    images = torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        model.eval()(images)
    # The root keeps its parameters gathered for a backward pass; only the first layer is a group of its own.
    with pytest.raises(ValueError, match=r"(?s)'1\.weight' can't be written.*FSDP.*reshard\(\)"):
        world.ghn_(model)
    plan = geninit.plan(model, pretrained=world.generators["ghn"])
    with pytest.raises(ValueError, match=r"(?s)'weight' can't be written.*reshard\(\)"):
        plan.write_(model[9])  # type: ignore[index]
    model.reshard()  # type: ignore[operator]
    expected = world.ghn_(seeded()).eval()
    torch.testing.assert_close(world.ghn_(model)(images), expected(images))


def module_by_module(world: World) -> None:
    model = seeded()
    prediction = geninit.plan(model, "noise_ghn", pretrained=world.generators["noise-ghn"]).predict(seed=5)
    fsdp(model, world)
    with alone(world):
        model.apply(prediction.write_)
    assert_same(model, world.noise_ghn_(seeded()))


class Asking(nn.Module):
    """A forward pass that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seeded()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if self.body[9].bias.sum().item() < 100 else out.relu()  # type: ignore[index, union-attr, operator]


def who_asks_for_values_is_traced_before(world: World) -> None:
    model = Asking()
    graph = geninit.trace(model)
    expected = world.ghn_(Asking())
    fully_shard(model, mesh=world.mesh("all"))
    with alone(world), pytest.raises(geninit.TraceError, match="before sharding"):
        world.ghn_(model)
    with alone(world):
        world.ghn_(model, graph=graph)
    assert_same(model, expected)


def the_verdict_is_measured_as_alone(world: World) -> None:
    """From whole predicted weights, without communication; the statistics are the same on every rank."""
    generator = geninit.load("ghn-cifar10")
    expected = geninit.ghn_(resnet20(), pretrained=generator)
    alone_plan = geninit.plan(resnet20(), pretrained=generator)
    model = resnet20()
    fully_shard(model, mesh=world.mesh("all"))
    with alone(world):
        plan = geninit.plan(model, pretrained=generator)
        geninit.ghn_(model, pretrained=generator)
    assert plan.verdict is not None and alone_plan.verdict is not None
    assert alone_plan.verdict.measured is not None, alone_plan.verdict.reason
    assert plan.verdict.measured is not None, plan.verdict.reason
    assert plan.verdict.measured[:7] == alone_plan.verdict.measured[:7]
    assert_same(model, expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected.get_buffer(name)), name


CHECKS: dict[str, Callable[[World], None]] = {
    **{
        f"{way}, {verb}": shards_equal_slices(way, verb, torch.float32)
        for way in WAYS
        for verb in ("vae_", "ghn_", "noise_ghn_")
    },
    "bfloat16": shards_equal_slices("columns", "ghn_", torch.bfloat16),
    **{
        check.__name__: check
        for check in (
            a_sharded_model_can_be_traced,
            nobody_waits_for_anybody,
            the_counter_counts,
            meta_models_are_refused_by_name,
            from_meta_it_trains_as_alone,
            what_is_reset_is_the_slice_too,
            gathered_parameters_are_refused_by_name,
            module_by_module,
            who_asks_for_values_is_traced_before,
            the_verdict_is_measured_as_alone,
        )
    },
}


def run(rank: int, size: int, folder: str) -> None:
    """Be one rank: run every check and write down which failed and how."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=300),  # a busy machine may keep one rank waiting
    )
    world = World(rank, size, {kind: tiny_generator(kind) for kind in ("vae", "ghn", "noise-ghn")})
    failures: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            check(world)
        except BaseException:  # noqa: BLE001 - pytest's own failures are no Exception
            failures[name] = traceback.format_exc()
        dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
