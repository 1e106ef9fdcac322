"""Writing: shards without communication."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

import torch_geninit as geninit
from tests.support.fake_ranks import mesh_of, net, rank_of
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.compact import Tile
from torch_geninit.parameters.dtensor import local_indices
from torch_geninit.parameters.write import write_part

Generators = Callable[[str], WeightGenerator]


class Largest(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that is computed."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


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


@pytest.mark.parametrize(
    ("strides", "said"), [((0, 9, 3, 1), "elements share memory"), ((100, 9, 3, 1), "elements share memory")]
)
def test_a_parameter_whose_elements_share_memory_is_refused(
    tiny: Generators, strides: tuple[int, ...], said: str
) -> None:
    memory = torch.zeros(4000)
    layer = nn.Conv2d(16, 16, 3)
    layer.weight = nn.Parameter(torch.as_strided(memory, (16, 16, 3, 3), strides))
    with pytest.raises(ValueError, match=said):
        geninit.vae_(layer, seed=0, pretrained=tiny("vae"))
    assert not memory.any()


def test_a_fake_parameter_is_refused_for_what_it_is(tiny: Generators) -> None:
    with FakeTensorMode():
        layer = nn.Conv2d(16, 16, 3)
    with pytest.raises(ValueError, match=r"a fake tensor, which has no values\nBuild the model outside"):
        geninit.vae_(layer, seed=0, pretrained=tiny("vae"))
