"""The recorder of the published hypernetworks: a walk over the autograd graph of a copy without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.published_networks import network, tiny, torchvision
from torch_geninit.generators.published.reader.read import AutogradReadError, read

pytestmark = pytest.mark.system


def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the recorder run every model on real tensors, where autograd is what the originals walked."""
    from torch_geninit.generators.published.reader import read as autograd

    def run(model: nn.Module, example_inputs: Any) -> Any:
        args, kwargs = next(autograd._candidates(model, example_inputs, "cpu"))
        return autograd._forward(model, args, kwargs, "cpu")

    monkeypatch.setattr(autograd, "_run", run)


SOME = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "googlenet"]


@pytest.mark.parametrize("dialect", ["ghn2", "ghn3"])
@pytest.mark.parametrize("name", SOME)
def test_graph_from_meta_tensors_is_that_from_real_ones(
    name: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = network(name, meta=False), torch.zeros(2, 3, 64, 64)
    found = read(model, inputs, dialect=dialect)
    cpu_only(monkeypatch)
    assert found == read(model, inputs, dialect=dialect)


def test_fused_attention_is_one_node_by_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=10)
    found = read(model)
    assert [node.op for node in found.nodes].count("softmax") == 2
    cpu_only(monkeypatch)
    assert read(model) == found
    math = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(math):
        assert read(model) == found


@pytest.mark.parametrize("family", [2, 3])
def test_graph_does_not_depend_on_the_state_of_the_model(family: int) -> None:
    model = network("mobilenet_v3_small", meta=False)
    generator = tiny(family)
    expected = generator.trace(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    assert generator.trace(model.eval().requires_grad_(False)) == expected
    with torch.inference_mode():
        assert generator.trace(model) == expected
    assert generator.trace(model.to(torch.bfloat16).train()) == expected
    assert generator.trace(network("mobilenet_v3_small")) == expected
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name].to(value.dtype), rtol=0, atol=0)


def test_wrappers_keep_their_names() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    wrapped = torch.compile(nn.DataParallel(plain), backend="eager")
    graph = read(wrapped)
    assert graph.fingerprint == read(plain).fingerprint
    assert set(graph.uses) == {name for name, _ in wrapped.named_parameters()}


def test_layer_used_twice_is_sorted_with_the_head_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.first(x)).relu()).mean((2, 3)))

    graph = read(Twice())
    assert graph.nodes[0].op == "input"
    assert [node.op for node in graph.nodes[-3:]] == ["linear", "bias", "output"]
    assert all(source < target for source, target in graph.edges)


def test_model_that_cannot_be_run_asks_for_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x) + y

    with pytest.raises(AutogradReadError, match="example_inputs"):
        read(Two())
    graph = read(Two(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert set(graph.uses) == {"layer.weight", "layer.bias"}
