"""What the shipped generators' weights are like beside He's: scale, rank, and no two filters the same.

Bounds, for networks of each generator's own kind. A layer's standard deviation is between a half and twice
He's, that of the classifier of a ResNet, which has been trained, between a fifth and five times (a sixth and
six by ghn-cifar10, which learned for longest); a matrix's effective rank is at least half that of independent
normal numbers. Generators of other families learned the scale of layers that no norm follows: between a
tenth and ten times He's, three tenths of the rank. Of the embedding of patches, which reads pixels, a
quarter: few directions hold most of what patches differ in.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.support import golden_values as golden
from torch_geninit.graph.queries import normalised_kernels
from torch_geninit.planning import measure
from torch_geninit.training.networks.resnet import ResNet

Weights = dict[str, Tensor]


class Made(NamedTuple):
    """What a generator made for a network: its matrices, and the bounds that they are held to.

    Attributes:
        factors: most that each one's scale may differ from He's, up or down.
        ranks: least share of each one's effective rank in that of normal numbers.
    """

    weights: Weights
    factors: dict[str, float]
    ranks: dict[str, float]


@pytest.fixture(
    scope="module",
    params=[(*pair, network) for pair in golden.pairs() for network in golden.networks(pair[1])],
    ids=lambda p: "-".join(p),
)
def made(request: pytest.FixtureRequest) -> Made:
    """Every matrix that one generator makes for one network."""
    verb, generator, network = request.param
    plan, model = golden.made(verb, generator, network)
    found = matrices(plan, model)
    if generator not in golden.OWN:
        head = 6.0 if generator == "ghn-cifar10" else 5.0
        factors = {name: head if name == "fc.weight" else 2.0 for name in found}
        return Made(found, factors, dict.fromkeys(found, 0.5))
    normalised = normalised_kernels(plan.architecture)
    ranks = {name: 0.25 if name == "patches.weight" else 0.3 for name in found}
    return Made(found, {name: 2.0 if name in normalised else 10.0 for name in found}, ranks)


@pytest.fixture()
def weights(made: Made) -> Weights:
    return made.weights


def matrices(plan: geninit.Plan, model: nn.Module) -> Weights:
    nodes = plan.architecture.nodes if plan.architecture else ()
    names = [
        entry.name
        for entry in plan.generated
        # Tables of positions are no matrices.
        if len(entry.shape) > 1 and (not nodes or nodes[entry.node].op in ("conv", "linear"))
    ]
    found = {name: model.get_parameter(name).detach().flatten(1) for name in names}
    assert len(found) > 5
    return found


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007)."""
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def he_std(matrix: Tensor) -> float:
    return float((2 / matrix.shape[1]) ** 0.5)


def test_scale(made: Made) -> None:
    for name, matrix in made.weights.items():
        factor = made.factors[name]
        assert 1 / factor < matrix.std() / he_std(matrix) < factor, name
        assert matrix.mean().abs() < matrix.std(), name


def test_effective_rank(made: Made) -> None:
    stream = torch.Generator().manual_seed(0)
    for name, matrix in made.weights.items():
        normal = torch.randn(matrix.shape, generator=stream)
        assert effective_rank(matrix) > made.ranks[name] * effective_rank(normal), name


def test_no_two_filters_are_equal(weights: Weights) -> None:
    for name, matrix in weights.items():
        assert different_rows(matrix), name


def different_rows(matrix: Tensor) -> bool:
    """Whether all rows differ, and by far more than rounding: no two of them within 1 % of their length."""
    rows = matrix.double()
    products = rows @ rows.T
    squares = products.diagonal()
    distances = squares[:, None] + squares - 2 * products
    distances.fill_diagonal_(torch.inf)
    return bool((distances > 1e-4 * squares.mean()).all())


@pytest.mark.parametrize(
    ("verb", "generator"),
    [pair for pair in golden.pairs() if pair[0] != "vae" and pair[1] not in golden.OWN],
    ids="-".join,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_far_wider_than_any_decoder(
    verb: str, generator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of weights is repeated there; the repetitions must not be the same filters again."""
    monkeypatch.setattr(measure, "BUDGET", 0.0)  # what the network is worth is no matter
    model = ResNet((1, 1, 1), (128, 256, 512)).to(dtype)
    plan = geninit.plan(model, verb, pretrained=generator, untrusted="generate", **golden.images(generator))  # type: ignore[arg-type]
    for name, matrix in matrices(plan, plan.write_(model, **golden_seed(verb))).items():
        assert different_rows(matrix), name


def golden_seed(verb: str) -> dict[str, int]:
    return {"seed": golden.SEED} if verb == "noise_ghn" else {}


def test_the_measures_notice() -> None:
    stream = torch.Generator().manual_seed(0)
    full = torch.randn(32, 64, generator=stream)
    low = torch.randn(32, 4, generator=stream) @ torch.randn(4, 64, generator=stream)
    assert effective_rank(low) < 4.001 < 0.3 * effective_rank(full) < 0.5 * effective_rank(full)
    assert different_rows(full)
    twice = full.clone()
    twice[17] = full[3] * 1.001
    assert not different_rows(twice)
