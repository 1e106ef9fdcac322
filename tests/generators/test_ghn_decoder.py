"""What the hypernetwork decodes besides convolutions, against the slow twin, and the law of tiles."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.random_ghn import config
from tests.support.reference import ghn_reference as reference
from torch_geninit.generators.compact import Tile
from torch_geninit.generators.ghn.model import GraphHyperNetwork, kind
from torch_geninit.graph.queries import packed_sections
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.networks.blocks import Style
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.search_space import WEIGHTS, sample

IMAGE = torch.zeros(1, 3, 32, 32)


def embedding(generator: GraphHyperNetwork, architecture: object, name: str) -> torch.Tensor:
    x = reference.embed(generator, architecture)[architecture.uses[name][0]]  # type: ignore[attr-defined]
    return torch.cat([x, torch.zeros(3)])


@pytest.fixture(scope="module")
def transformer() -> tuple[nn.Module, object]:
    spec = Spec("transformer", (1,), (24,), Style(), stem=8, heads=2, positions="table", class_token=True)
    model = spec.build(10)
    return model, trace(model, IMAGE)


@torch.no_grad()
def test_factored_templates_reach_wide_layers_whole() -> None:
    sizes = {**config()["sizes"], "channels": 24, "factors": 3, "rank": 5}
    decoder = GraphHyperNetwork({**config(), "sizes": sizes}).decoder
    bank = decoder.banks["conv"]
    mixed = torch.randn(2, sizes["mix"])
    coefficients = mixed @ bank.coefficients.weight.T + bank.coefficients.bias
    for rows, columns in ((24, 24), (20, 7)):
        decoded = bank(mixed, rows, columns)
        assert decoded.shape == (2, rows, columns)
        for layer in range(2):
            expected = torch.zeros(rows, columns)
            for r in range(5):
                for k in range(3):
                    expected += coefficients[layer, r] * torch.outer(
                        bank.left[r, :rows, k], bank.right[r, :columns, k]
                    )
            torch.testing.assert_close(decoded[layer], expected)
    assert torch.linalg.matrix_rank(bank(mixed, 24, 24)[0]) == 5 * 3


@torch.no_grad()
def test_packed_projection_has_a_tile_for_each_section(
    generator: GraphHyperNetwork, transformer: tuple[nn.Module, object]
) -> None:
    _, architecture = transformer
    name = "blocks.0.qkv.weight"
    tile = generator(architecture, [name])[name]
    x = embedding(generator, architecture, name)
    assert tile.sections == 3
    for section in range(3):
        expected = reference.kernel(
            generator, x, 8, 8, (1, 1), (72, 24), normalised=False, part="linear", section=section
        )
        found = tile.values[8 * section : 8 * section + 8]
        torch.testing.assert_close(found, expected[:, :, 0, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tables_and_tokens(generator: GraphHyperNetwork, transformer: tuple[nn.Module, object]) -> None:
    _, architecture = transformer
    x = embedding(generator, architecture, "positions")
    expected = reference.table(generator, x, 4, 24, token=True)
    found = generator(architecture, ["positions"])["positions"].values
    torch.testing.assert_close(found, expected[None], rtol=1e-4, atol=1e-5)
    x = embedding(generator, architecture, "class_token")
    expected = reference.table(generator, x, 0, 24, token=True)
    found = generator(architecture, ["class_token"])["class_token"].values
    torch.testing.assert_close(found, expected[None], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_depthwise_kernels_have_templates_of_their_own(generator: GraphHyperNetwork) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6))
    architecture = trace(model, IMAGE)
    x = embedding(generator, architecture, "1.weight")
    expected = reference.kernel(generator, x, 6, 1, (3, 3), (6, 1), normalised=False, part="depthwise")
    found = generator(architecture, ["1.weight"])["1.weight"].values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_large_kernels_are_resampled(generator: GraphHyperNetwork) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 9), nn.BatchNorm2d(6))
    name = "0.weight"
    found = generator(trace(model, IMAGE), [name])[name].values
    assert found.shape == (6, 3, 9, 9)
    assert found.square().mean() == pytest.approx(2 / (3 * 81), rel=1e-4)
    # Bilinear resampling with aligned corners keeps the corners of the decoder's own 5x5 kernel.
    x = embedding(generator, trace(model, IMAGE), name)
    whole = reference.kernel(generator, x, 6, 3, (5, 5), (6, 3), normalised=True)
    cosine = torch.cosine_similarity(found[:, :, ::8, ::8].flatten(), whole[:, :, ::4, ::4].flatten(), dim=0)
    assert cosine == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("family", list(WEIGHTS))
def test_every_parameter_of_every_family_is_decoded(generator: GraphHyperNetwork, family: str) -> None:
    for seed in range(3):
        model = sample(random.Random(seed), {family: 1.0}).build(10)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            tiles = generator(trace(model, IMAGE), list(parameters))
        assert {n: t.expand().shape for n, t in tiles.items()} == {n: p.shape for n, p in parameters.items()}


def test_sections_are_found_from_the_sizes_around_attention() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    architecture = trace(layer, torch.zeros(1, 5, 12))
    packed = {architecture.nodes[i].parameters[0].name for i in packed_sections(architecture)}
    assert packed == {"self_attn.in_proj_weight"}
    separate = nn.MultiheadAttention(12, 2, kdim=8, vdim=8, batch_first=True)
    inputs = (torch.zeros(1, 5, 12), torch.zeros(1, 5, 8), torch.zeros(1, 5, 8))
    assert packed_sections(trace(separate, inputs)) == {}


def test_kinds_tell_what_a_generator_is_trained_on() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, (1, 3)),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 8, 2),
        nn.GroupNorm(2, 8),
    )
    architecture = trace(model, IMAGE)
    kinds = {name: kind(architecture.nodes[i], use) for name, (i, use) in architecture.uses.items()}
    assert kinds["0.weight"] == "1x3 convolution"
    assert kinds["1.weight"] == "3x3 depthwise convolution"
    assert kinds["2.weight"] == "3x3 grouped convolution"
    assert kinds["3.weight"] == "2x2 transposed convolution"
    assert kinds["4.bias"] == "group_norm bias"


def law(tile: Tile) -> torch.Tensor:
    """The parameter value by value, as the docstring of Tile states it."""
    modulation = tile._modulation()
    rows, height = tile.values.shape[0] // tile.sections, tile.shape[0] // tile.sections
    out = torch.empty(tile.shape)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in tile.shape)).view(-1, len(tile.shape)):
        o, *rest = index.tolist()
        section, row = divmod(o, height)
        at = [section * rows + row % rows, *(i % n for i, n in zip(rest, tile.values.shape[1:], strict=True))]
        value = tile.values[tuple(at)] * tile.scale
        if modulation is not None:
            value = value * modulation[(section, row // rows, *rest)]
        out[tuple(index.tolist())] = value
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tiles_obey_their_law(data: st.DataObject) -> None:
    small = st.integers(1, 4)
    sections = data.draw(st.sampled_from([1, 1, 3]))
    rows, columns = data.draw(small), data.draw(small)
    trailing = data.draw(st.sampled_from([(), (2,), (2, 3)]))
    matrix = data.draw(st.booleans()) or bool(trailing)
    height = data.draw(st.integers(rows, 3 * rows + 1))
    width = data.draw(st.integers(columns, 3 * columns + 1))
    tile_shape = (sections * rows, *((columns, *trailing) if matrix else ()))
    shape = (sections * height, *((width, *trailing) if matrix else ()))
    values = torch.randn(tile_shape, generator=torch.Generator().manual_seed(0))
    amplitude = data.draw(st.sampled_from([0.0, 0.1]))
    tile = Tile(values, shape, 1.5, amplitude, "w", sections)
    expected = law(tile)
    assert torch.equal(tile.expand(), expected)
    assert torch.equal(
        Tile(values, shape, sections=sections).repeat(), law(Tile(values, shape, sections=sections))
    )
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    part = torch.empty(stop - start, *shape[1:])
    tile.write_to(part, start)
    assert torch.equal(part, expected[start:stop])
    half = torch.empty(shape, dtype=torch.bfloat16)
    tile.write_to(half)
    assert torch.equal(half, expected.bfloat16())


def test_modulation_is_ten_percent_and_starts_in_the_second_block() -> None:
    tile = Tile(torch.ones(2, 2), (200, 400), amplitude=0.1, name="w")
    full = tile.expand()
    assert torch.equal(full[:2], torch.ones(2, 400))
    assert full[2:].std() == pytest.approx(0.1, rel=0.05)
    assert math.isclose(full[2:].mean(), 1.0, abs_tol=0.01)
