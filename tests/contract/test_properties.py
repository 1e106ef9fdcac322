"""The contract of the verbs, for any network that a grammar of layers can say.

The fast tier draws two hundred networks, the full tier ten thousand for every verb.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.properties import GENERATORS, SHIPPED, VARIANTS, Subject, scripted
from tests.support.random_networks import Recipe
from torch_geninit.generators.base import WeightGenerator


def examples(count: int) -> Any:
    """Settings that draw ``count`` networks, the same each time."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


def drawn(data: st.DataObject, widest: int) -> Subject:
    verb = data.draw(st.sampled_from(sorted(GENERATORS)))
    generator = data.draw(st.sampled_from(sorted(GENERATORS[verb])))
    recipe = Recipe(lambda n: data.draw(st.integers(0, n - 1)), widest=widest)
    return Subject(verb, GENERATORS[verb][generator], recipe)


variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)


@variants
def test_two_hundred_networks(variant: Callable[[Subject], None]) -> None:
    written = 0
    for seed in range(23):
        source = random.Random(f"{variant.__name__} {seed}")
        recipe = Recipe(source.randrange, widest=512)
        verb = source.choice(sorted(GENERATORS))
        written += hold(verb, source.choice(list(GENERATORS[verb].values())), variant, recipe, seed)
    assert written > 50


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_networks_with_every_verb(first: int) -> None:
    written, failed = 0, {}
    for seed in range(first, first + 500):
        try:
            written += hold_all(seed)
        except AssertionError:
            failed[seed] = traceback.format_exc()
    assert not failed, "\n".join(failed.values())
    assert written > 2000


@pytest.mark.parametrize("seed", [1356, 3630, 3743, 4539, 5313, 6174])
def test_networks_that_failed_once(seed: int) -> None:
    assert hold_all(seed)


def hold_all(seed: int) -> int:
    """Hold every verb to its contract on one network, each with some generator and in some variant."""
    source = random.Random(seed)
    recipe = Recipe(source.randrange, widest=4096)
    written = 0
    for verb, generators in GENERATORS.items():
        generator = source.choice([*generators.values(), SHIPPED[verb]])
        variant = source.choice([*VARIANTS, scripted])
        recipe.first = recipe.build()
        written += hold(verb, generator, variant, recipe, seed)
    return written


def hold(
    verb: str, generator: WeightGenerator, variant: Callable[[Subject], None], recipe: Recipe, seed: int
) -> int:
    """Check everything, say what failed, and return how many parameters were written."""
    subject = Subject(verb, generator, recipe)
    try:
        subject.check()
        variant(subject)
    except BaseException as error:
        what = f"{verb} by {type(generator).__name__}, {variant.__name__}"
        raise AssertionError(f"seed {seed}: {what}") from error
    return len(subject.written)


@pytest.mark.full
@variants
@examples(300)
@given(data=st.data())
def test_networks_that_hypothesis_simplifies(variant: Callable[[Subject], None], data: st.DataObject) -> None:
    """Drawn less evenly; what fails here comes as the smallest network that does."""
    subject = drawn(data, 512)
    subject.check()
    variant(subject)


@pytest.mark.gpu
@examples(300)
@given(data=st.data())
def test_cuda_has_the_bits_of_the_cpu(data: st.DataObject) -> None:
    subject = drawn(data, 4096)
    subject.check()
    model = subject.recipe.build().cuda()
    before = torch.cuda.get_rng_state()
    found = subject.quietly(model)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    subject.same_as_before({name: value.cpu() for name, value in found.items()})


def test_the_grammar_says_what_it_should() -> None:
    """Every kind of layer, type and trick occurs; otherwise the properties hold for less than they say."""
    generator = torch.Generator().manual_seed(0)
    kinds: Counter[str] = Counter()
    for _ in range(150):
        model = Recipe(lambda n: int(torch.randint(n, (), generator=generator)), widest=16).first
        for module in model.modules():
            kinds[type(module).__name__.removeprefix("Parametrized")] += 1
        kinds.update(str(p.dtype) for p in model.parameters())
        names = dict(model.named_parameters(remove_duplicate=False))
        kinds["tied"] += len(names) - len(set(map(id, names.values())))
        kinds["frozen"] += sum(not p.requires_grad for p in model.parameters())
        kinds["other layout"] += sum(not p.is_contiguous() for p in model.parameters())
    missing = set(_expected()) - set(kinds)
    assert not missing and kinds["tied"] and kinds["frozen"] and kinds["other layout"], missing


def _expected() -> Iterator[str]:
    for dims in "123":
        yield from (f"Conv{dims}d", f"ConvTranspose{dims}d", f"BatchNorm{dims}d", f"MaxPool{dims}d")
    yield from "Residual Branches Positions Embedding MultiheadAttention TransformerEncoderLayer".split()
    yield from "Linear LayerNorm GroupNorm RMSNorm InstanceNorm2d PReLU LSTM GRU ParametrizationList".split()
    yield from (f"torch.{dtype}" for dtype in ("float32", "bfloat16", "float16", "float64"))
