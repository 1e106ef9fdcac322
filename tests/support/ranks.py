"""What every rank of a real process group checks; test_distributed.py starts them and reads what failed."""

from __future__ import annotations

import datetime
import json
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import _random as dtensor_random
from torch.distributed.tensor.debug import CommDebugMode

import torch_geninit as geninit
from tests.conftest import tiny_generator
from tests.support.resnets import resnet8
from tests.support.sharding import (
    WAYS,
    Way,
    World,
    columns,
    fsdp,
    fsdp_over_tensor_parallel,
    net,
    rows_and_columns,
    seeded,
)
from torch_geninit.generators.compact import Compact
from torch_geninit.parameters import write as writing

Verb = Callable[..., nn.Module]


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
    expected = resnet8()
    alone_plan = geninit.plan(expected, pretrained=generator)
    alone_plan.write_(expected)
    model = resnet8()
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
