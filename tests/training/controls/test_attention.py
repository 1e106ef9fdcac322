"""Mimetic and impulse initialisation: what attention does afterwards, whatever layer holds the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_geninit.training.controls.attention import Projections, projections
from torch_geninit.training.controls.impulse import impulse_
from torch_geninit.training.controls.mimetic import mimetic_
from torch_geninit.training.networks.resnet import resnet20
from torch_geninit.training.networks.vit import Attention, VisionTransformer, ViT

Control = Callable[..., nn.Module]
KINDS: tuple[Attention, ...] = ("module", "packed", "separate")


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit(heads: int = 1, width: int = 96, **options: object) -> VisionTransformer:
    torch.manual_seed(0)
    model = ViT(2, width, heads, 8, **options).build(10, 32)  # type: ignore[arg-type]
    assert isinstance(model, VisionTransformer)
    return model


def attention(one: Projections, tokens: Tensor, head: int) -> Tensor:
    """Attention (T, T) of one head, from the definition: softmax of scaled products of queries and keys."""
    size = tokens.shape[-1] // one.heads
    query, key = (tokens @ weight.T for weight in (one.query, one.key))
    part = slice(head * size, (head + 1) * size)
    return (query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "pair", "noise"), [(1, "query and key", 0.7), (3, "value and out", 0.4)])
def test_mimetic_products_are_an_identity_and_noise(
    kind: Attention, heads: int, pair: str, noise: float
) -> None:
    """One head has queries and keys of full rank: their product is the whole matrix, not an approximation."""
    for one in projections(mimetic_(vit(heads, attention=kind), generator=stream())):
        queries = pair == "query and key"
        product = one.query.T @ one.key if queries else one.value.T @ one.out.T
        rest = product - (noise if queries else -noise) * torch.eye(96)
        assert abs(rest.mean()) < 4 * noise / 96**1.5
        assert rest.std().item() == pytest.approx(noise / 96**0.5, rel=0.05)


def test_mimetic_heads_are_low_rank_with_a_diagonal_and_differ() -> None:
    (one, _) = projections(mimetic_(vit(3), generator=stream()))
    products = [one.query[rows].T @ one.key[rows] for rows in (slice(0, 32), slice(32, 64), slice(64, 96))]
    for product in products:
        assert torch.linalg.matrix_rank(product) == 32
        beside = product.flatten()[1:].view(95, 97)[:, :-1]  # all but the diagonal
        # Trace of the best approximation: near a third of the rank, more than a third of 0.7.
        assert product.diagonal().mean() > 0.7 / 3 > 10 * beside.mean().abs()
    assert not torch.allclose(products[0], products[1])


def test_mimetic_attention_looks_at_near_patches_from_sines_alone() -> None:
    model = mimetic_(vit(3), generator=stream())
    assert isinstance(model, VisionTransformer) and model.encoder.positions is not None
    table = model.encoder.positions.detach()[0]
    assert not table[0].any(), "the class token has none"
    (one, _) = projections(model)
    tokens = F.layer_norm(table[1:], (96,))
    at = torch.arange(16)
    far = ((at[:, None] // 4 - at // 4).square() + (at[:, None] % 4 - at % 4).square()).float().sqrt()

    def mean_distance(one: Projections) -> list[Tensor]:
        return [(attention(one, tokens, head) * far).sum(1).mean() for head in range(3)]

    assert max(mean_distance(one)) < 0.9 * far.mean()
    assert min(mean_distance(projections(vit(3))[0])) > 0.95 * far.mean(), "the library's own does not"
    kept = mimetic_(vit(3), generator=stream(), positions=False)
    assert torch.equal(kept.encoder.positions, vit(3).encoder.positions)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("head", "rows", "columns"), [(0, 0, 0), (1, -1, 0), (2, 0, 1), (3, 0, -1), (4, 1, 0), (5, -1, -1)]
)
def test_impulse_heads_attend_to_their_neighbour(kind: Attention, head: int, rows: int, columns: int) -> None:
    """Sixteen patches, heads of sixteen channels: the shift is exact wherever it stays in the image."""
    model = impulse_(vit(6, attention=kind), generator=stream(1))
    tokens = F.layer_norm(model.encoder.positions.detach()[0, 1:], (96,))  # type: ignore[union-attr, index]
    for one in projections(model):
        seen = attention(one, tokens, head)
        for row in range(4):
            for column in range(4):
                if row + rows in range(4) and column + columns in range(4):
                    assert seen[4 * row + column, 4 * (row + rows) + column + columns] > 0.9


def test_impulse_with_more_patches_than_channels_still_prefers_the_neighbour() -> None:
    torch.manual_seed(0)
    model = impulse_(ViT(1, 96, 3, 4, pool="mean").build(10, 32), generator=stream())
    tokens = F.layer_norm(model.encoder.positions.detach()[0], (96,))  # type: ignore[union-attr, index]
    (one,) = projections(model)
    up = attention(one, tokens, 1)[8:]  # 64 patches; the second head looks one row up, the first row nowhere
    right = (up.argmax(1) == torch.arange(56)).float().mean()
    assert right > 0.5


def test_impulse_values_and_outputs_are_mimetic_and_positions_large() -> None:
    model = impulse_(vit(3), generator=stream())
    (one, _) = projections(model)
    rest = one.value.T @ one.out.T + 0.4 * torch.eye(96)
    assert rest.std().item() == pytest.approx(0.4 / 96**0.5, rel=0.05)
    assert model.encoder.positions.std().item() == pytest.approx(0.36, rel=0.1)  # type: ignore[union-attr]


@pytest.mark.parametrize("control", [mimetic_, impulse_])
def test_the_rest_stays_and_the_generator_decides(control: Control) -> None:
    one, again, other = (control(vit(3), generator=stream(seed)) for seed in (0, 0, 1))
    for name, value in vit(3).named_parameters():
        projected = "attention.attention" in name and "weight" in name
        same = torch.equal(value, one.get_parameter(name))
        assert same is not (projected or name == "encoder.positions"), name
        assert torch.equal(one.get_parameter(name), again.get_parameter(name))
        if projected:
            assert not torch.equal(one.get_parameter(name), other.get_parameter(name)), name


@pytest.mark.parametrize("control", [mimetic_, impulse_])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (resnet20, "ResNet: expected a network with self-attention"),
        (lambda: vit(3, attention="packed", query_norm=True), "attention: expected queries and keys without"),
        (lambda: vit(3, positions="sines"), "VisionTransformer: expected a learned table of positions"),
        (lambda: nn.TransformerEncoderLayer(16, 2), "TransformerEncoderLayer: expected a VisionTransformer"),
        (lambda: nn.MultiheadAttention(16, 2, kdim=8), "expected queries, keys and values of one size"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name_and_left(
    control: Control, model: Callable[[], nn.Module], message: str
) -> None:
    torch.manual_seed(0)
    refused = model()
    before = {name: value.clone() for name, value in refused.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        control(refused, generator=stream())
    assert all(torch.equal(value, before[name]) for name, value in refused.state_dict().items())
