"""bfloat16 is warned of once where the processor has no instructions for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch

pytest.importorskip("tqdm")

from tests.support.colours import colours
from torch_geninit.training.loops.classifier import Phase, Recipe, train_classifier
from torch_geninit.training.loops.ghn_loss import logits_with
from torch_geninit.training.networks.families import Spec
from torch_geninit.training.networks.resnet import ResNet
from torch_geninit.training.networks.search_space import Space
from torch_geninit.training.operators import precision

Processor = Callable[[Mapping[str, object]], None]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processor]:
    """Return a function that says what the processor has."""
    precision._warn_if_slow.cache_clear()

    def has(capabilities: Mapping[str, object]) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    yield has
    precision._warn_if_slow.cache_clear()


def told(device: str = "cpu", *, wanted: bool = True) -> int:
    """Ask twice for autocast, and count the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            precision.bfloat16_if(wanted, device)
    assert all("leave --amp out" in str(warning.message) for warning in caught)
    return len(caught)


def test_once(processor: Processor) -> None:
    processor({"avx2": True, "avx512_f": True, "avx512_bf16": False, "architecture": "x86_64"})
    assert told() == 1


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_not_where_there_are_instructions(name: str, processor: Processor) -> None:
    processor({name: True})
    assert told() == 0


def test_not_where_it_is_not_wanted_or_a_gpu_computes(processor: Processor) -> None:
    processor({})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with precision.bfloat16_if(False, "cpu"), torch.autocast("cpu", torch.bfloat16):
            with precision.bfloat16_if(False, "cpu"):
                assert torch.is_autocast_enabled("cpu"), "somebody else's autocast stays"
        assert not torch.is_autocast_enabled("cpu")
    assert not precision._warn_if_slow.cache_info().currsize


def test_not_where_torch_can_not_tell(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert told() == 0


def test_training_of_a_classifier_tells(processor: Processor) -> None:
    processor({})
    recipe = Recipe([Phase(8, 1)], batch_size=16, amp=True)
    with pytest.warns(UserWarning, match="leave --amp out"):
        train_classifier(ResNet((1, 1), (4, 8), 2), colours(16), recipe, seed=0)


def test_the_loss_of_a_hypernetwork_tells(processor: Processor) -> None:
    processor({})
    images = torch.zeros(2, 3, 32, 32)
    network = Space(10, images[:1]).get(Spec("plain", (1, 1), (8, 16)))
    with pytest.warns(UserWarning, match="leave --amp out"):
        logits_with(dict(network.spec.build(10).named_parameters()), network, images, amp=True)
