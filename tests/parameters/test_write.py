"""Writing: shards without communication, resets that undo themselves, the ambient state."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import torch_geninit as geninit
from tests.support import processes
from torch_geninit._utils.determinism import fixed
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Tile
from torch_geninit.parameters.dtensor import local_indices
from torch_geninit.parameters.reset import reset
from torch_geninit.parameters.write import write_part

Generators = Callable[[str], WeightGenerator]


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


class Largest(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that is computed."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


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


PLACEMENTS: list[tuple[tuple[int, ...], tuple[Placement, ...]]] = [
    ((2,), (Shard(0),)),
    ((4,), (Shard(0),)),
    ((5,), (Shard(0),)),
    ((4,), (Shard(1),)),
    ((2,), (Shard(2),)),
    ((3,), (Replicate(),)),
    ((2, 2), (Replicate(), Shard(0))),
    ((2, 2), (Shard(0), Shard(0))),
    ((2, 2), (Shard(0), Shard(1))),
    ((2, 3), (Shard(1), Shard(0))),
    ((2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    ((2, 2), (Shard(3), Shard(1))),
]


class TestShards:
    @pytest.mark.parametrize(
        "shape, mesh_shape, placements",
        [
            (shape, *placed)
            for placed in PLACEMENTS
            for shape in [(12, 8, 3, 3), (17, 5, 3, 3), (2, 3, 3, 3)]
            if shape[0] == 12
            or not isinstance(placed[1][0], _StridedShard)  # torch needs an even split there
        ],
        ids=str,
    )
    def test_every_rank_gets_the_slice_that_torch_gives_it(
        self, shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: tuple[Placement, ...]
    ) -> None:
        world = torch.Size(mesh_shape).numel()
        tile = Tile(torch.randn(4, 3, *shape[2:]), shape, scale=0.5, amplitude=0.1, name="w")
        full = tile.expand()
        for rank in range(world):
            with rank_of(rank, world):
                mesh = mesh_of(*mesh_shape)
                expected = distribute_tensor(full, mesh, placements, src_data_rank=None)
                part = torch.zeros_like(expected)
                assert isinstance(part, DTensor)
                indices = local_indices(part)
                assert indices is not None
                write_part(tile, indices, part.to_local())
                assert torch.equal(part.to_local(), expected.to_local())

    def test_a_rank_outside_the_mesh_has_nothing_to_write(self) -> None:
        with rank_of(3, 4):
            mesh = mesh_of(2)
            assert local_indices(distribute_tensor(torch.ones(4), mesh, [Shard(0)])) is None

    @pytest.mark.parametrize("kind", ["vae", "ghn", "noise-ghn"])
    def test_verbs_on_sharded_models_equal_the_slices_of_the_whole(self, tiny: Generators, kind: str) -> None:
        def verb(model: nn.Module, graph: geninit.Architecture) -> None:
            if kind == "vae":
                geninit.vae_(model, pretrained=tiny(kind), seed=1)
            elif kind == "ghn":
                geninit.ghn_(model, pretrained=tiny(kind), graph=graph)
            else:
                geninit.noise_ghn_(model, 1, pretrained=tiny(kind), graph=graph)

        graph = geninit.trace(net())
        whole = net()
        verb(whole, graph)
        for rank in range(4):
            with rank_of(rank, 4):
                mesh = mesh_of(2, 2)
                model = net()
                for module in (model[0], model[1], model[5]):  # type: ignore[index]
                    for name, p in list(module.named_parameters(recurse=False)):
                        placements = [Replicate(), Shard(p.ndim - 1)]
                        shard = distribute_tensor(p.detach(), mesh, placements, src_data_rank=None)
                        module.register_parameter(name, nn.Parameter(shard))
                before = torch.get_rng_state()
                verb(model, graph)
                assert torch.equal(torch.get_rng_state(), before)
                for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                    expected = distribute_tensor(q.detach(), mesh, p.placements, src_data_rank=None)  # type: ignore[attr-defined]
                    assert torch.equal(p.to_local(), expected.to_local())  # type: ignore[attr-defined]

    def test_fully_shard(self, tiny: Generators) -> None:
        whole = geninit.ghn_(net(), pretrained=tiny("ghn"))
        for rank in range(3):
            with rank_of(rank, 3):
                mesh = mesh_of(3)
                model = net()
                plan = geninit.plan(model, pretrained=tiny("ghn"))
                fully_shard(model[0], mesh=mesh)  # type: ignore[index]
                fully_shard(model, mesh=mesh)
                assert all(isinstance(p, DTensor) for p in model.parameters())
                assert plan.write_(model) is model
                for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                    expected = distribute_tensor(q.detach(), mesh, [Shard(0)], src_data_rank=None)
                    assert torch.equal(p.to_local(), expected.to_local())  # type: ignore[attr-defined]

    def test_a_pending_sum_is_refused_by_name(self, tiny: Generators) -> None:
        with rank_of(0, 2):
            mesh = mesh_of(2)
            conv = nn.Conv2d(3, 8, 3)
            conv.weight = nn.Parameter(DTensor.from_local(conv.weight.detach(), mesh, [Partial()]))
            with pytest.raises(ValueError, match="(?s)'weight' can't be written.*DTensor.*sum"):
                geninit.vae_(conv, pretrained=tiny("vae"), seed=0)

    @settings(max_examples=60, deadline=None)
    @given(
        shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        data=st.data(),
    )
    def test_any_indices(self, shape: list[int], block: tuple[int, int], data: st.DataObject) -> None:
        tile_shape = [min(a, b) for a, b in zip(shape, block, strict=False)] + shape[2:]
        tile = Tile(torch.randn(tile_shape), tuple(shape), amplitude=0.1, name="w")
        indices = [torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))) for n in shape]
        out = torch.empty([len(i) for i in indices])
        write_part(tile, indices, out)
        expected = tile.expand()
        for position in product(*[range(len(i)) for i in indices]):
            source = tuple(int(i[k]) for i, k in zip(indices, position, strict=True))
            assert out[position] == expected[source]

    @pytest.mark.parametrize("amplitude", [0.0, 0.1])
    @pytest.mark.parametrize(
        "indices",
        [
            (torch.arange(128, 192), torch.arange(512)),
            (torch.arange(512), torch.arange(128, 192)),
            (torch.arange(0, 512, 4), torch.arange(1, 512, 2)),
        ],
        ids=["rows", "columns", "both"],
    )
    def test_nothing_but_the_shard_is_computed(
        self, indices: tuple[Tensor, Tensor], amplitude: float
    ) -> None:
        tile = Tile(torch.randn(64, 32), (512, 512), amplitude=amplitude, name="w")
        out = torch.empty([len(i) for i in indices])
        with Largest() as seen:
            write_part(tile, indices, out)
        # The factors that tell the blocks apart are an eighth of the parameter, whatever the shard.
        assert seen.numel <= max(out.numel(), 8 * 512)
        assert torch.equal(out, tile.expand()[indices[0]][:, indices[1]])

    def test_large_shards_are_written_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch_geninit.generators.compact.GATHERED_ELEMENTS", 50)
        tile = Tile(torch.randn(4, 4), (30, 20), amplitude=0.1, name="w")
        out = torch.empty(30, 7)
        write_part(tile, (torch.arange(30), torch.arange(5, 12)), out)
        assert torch.equal(out, tile.expand()[:, 5:12])


class TestReset:
    def test_what_is_not_generated_gets_its_own_initialisation(self, tiny: Generators) -> None:
        expected = net()
        geninit.ghn_(expected, pretrained=tiny("ghn"), head="keep")
        with torch.device("meta"):
            model = net()
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().fill_(torch.nan if tensor.is_floating_point() else -1)
        torch.manual_seed(3)
        geninit.ghn_(model, pretrained=tiny("ghn"), head="keep", unfilled="reset")
        torch.manual_seed(3)
        head = nn.Linear(18, 10)
        assert torch.equal(model[5].weight, head.weight)  # type: ignore[index]
        assert torch.equal(model[5].bias, head.bias)  # type: ignore[index]
        assert torch.equal(model[0].weight, expected[0].weight)  # type: ignore[index]
        # The norm's parameters are generated, its buffers are not.
        assert torch.equal(model[1].weight, expected[1].weight)  # type: ignore[index]
        assert all(map(torch.equal, model.buffers(), expected.buffers()))

    def test_a_failing_reset_undoes_all(self, tiny: Generators) -> None:
        class Failing(nn.Linear):
            armed = False

            def reset_parameters(self) -> None:
                super().reset_parameters()
                if self.armed:
                    raise ZeroDivisionError("on purpose")

        model = nn.Sequential(*list(net())[:4], nn.Flatten(), Failing(18, 7))  # type: ignore[call-overload]
        Failing.armed = True
        model[1].running_mean.fill_(5.0)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(RuntimeError, match=r"reset_parameters\(\) of a Failing failed: on purpose"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_a_module_that_cannot_reset_is_named(self, tiny: Generators) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = net()
                self.scale = nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.body(x)
                return out

        model = Scaled()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with (
            pytest.warns(geninit.GenInitWarning),
            pytest.raises(ValueError, match="'scale' is not generated.*Scaled, has no reset_parameters"),
        ):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_buffers_that_nobody_resets_are_told(self, tiny: Generators) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = net()
                self.register_buffer("scale", torch.ones(()), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.body(x) * self.scale
                return out

        with pytest.warns(geninit.GenInitWarning, match=r"leaves 1 buffers .*: scale$") as warned:
            geninit.ghn_(Scaled(), pretrained=tiny("ghn"), unfilled="reset")
        assert [w.filename for w in warned] == [__file__]

    def test_a_buffer_without_data_is_refused_by_name(self, tiny: Generators) -> None:
        model = net()
        model[1].running_var = torch.empty(18, device="meta")  # type: ignore[index]
        before = {k: v.clone() for k, v in model.named_parameters()}
        with pytest.raises(ValueError, match=r"'1\.running_var' can't be reset.*meta device.*to_empty"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="reset")
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    def test_a_sharded_module_that_resets_only_a_part_is_refused_and_undone(self) -> None:
        class Partly(nn.Linear):
            def reset_parameters(self) -> None:
                nn.init.zeros_(self.weight[0])

        with rank_of(1, 2):
            module = Partly(4, 4)
            for name, p in list(module.named_parameters()):
                shard = distribute_tensor(p.detach().fill_(1.0), mesh_of(2), [Shard(0)], src_data_rank=None)
                module.register_parameter(name, nn.Parameter(shard))
            with pytest.raises(RuntimeError, match=r"Partly failed: it sets only a part of 'weight'"):
                reset([module])
            assert torch.equal(module.weight.to_local(), torch.ones(2, 4))  # type: ignore[attr-defined]

    def test_attention_is_reset_as_its_constructor_does(self, tiny: Generators) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 2)

        model = Model()
        plan = geninit.plan(model, "vae", pretrained=tiny("vae"))
        torch.manual_seed(1)
        plan.write_(model, seed=0, unfilled="reset")
        assert torch.equal(model.attention.out_proj.bias, torch.zeros(8))
        torch.manual_seed(1)
        expected = nn.MultiheadAttention(8, 2)
        assert torch.equal(model.attention.out_proj.weight, expected.out_proj.weight)
        assert torch.equal(model.attention.in_proj_weight, expected.in_proj_weight)

    def test_error_names_what_would_be_left(self, tiny: Generators) -> None:
        model = net()
        with pytest.raises(geninit.StrictError, match=r"2 parameters are not generated: 5\.weight, 5\.bias"):
            geninit.ghn_(model, pretrained=tiny("ghn"), head="keep", unfilled="error")
        geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="error")
        with pytest.raises(ValueError, match="'keep', 'reset' or 'error', got 'drop'"):
            geninit.ghn_(model, pretrained=tiny("ghn"), unfilled="drop")  # type: ignore[arg-type]


class TestAmbient:
    def test_products_do_not_depend_on_the_thread_count(self) -> None:
        torch.manual_seed(0)
        a, b = torch.randn(300, 5000), torch.randn(5000, 64)
        inside = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            try:
                with fixed():
                    inside.append(a @ b)
                assert torch.get_num_threads() == count
            finally:
                torch.set_num_threads(1)
        assert torch.equal(inside[0], inside[1]) and torch.equal(inside[0], inside[2])

    def test_threads_that_start_meanwhile_keep_the_callers_number(self) -> None:
        seen: list[int] = []
        torch.set_num_threads(3)
        try:
            with fixed():
                thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
                thread.start()
                thread.join()
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(1)
        assert seen == [3]

    def test_inherited_and_own_precision_come_back_as_they_were(self) -> None:
        mkldnn = torch.backends.mkldnn
        mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
        for owner in (mkldnn, mkldnn.matmul):  # type: ignore[attr-defined]
            owner.fp32_precision = "bf16"
            try:
                with fixed():
                    assert mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
                assert mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
            finally:
                owner.fp32_precision = "none"
            assert mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]

    @pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
    @pytest.mark.system
    def test_a_fork_while_another_thread_computes_is_not_stuck(self) -> None:
        script = """
            import os, threading, time
            from torch_geninit._utils.determinism import fixed
            inside, leave = threading.Event(), threading.Event()
            def hold():
                with fixed():
                    inside.set(); leave.wait()
            thread = threading.Thread(target=hold); thread.start(); inside.wait()
            child = os.fork()
            if child == 0:
                with fixed():
                    os._exit(7)
            for _ in range(200):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.05)
            else:
                os.kill(child, 9)
            leave.set(); thread.join()
            raise SystemExit(os.waitstatus_to_exitcode(status) if done else 1)
        """
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=processes.environment(), timeout=60)
        assert done.returncode == 7
