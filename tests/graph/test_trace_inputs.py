"""What a trace is given or guesses, and what it says where that fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.tracing import Net, check, seen
from torch_geninit.graph.tracer.trace import TraceError, trace


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (np.zeros((1, 4), dtype=np.float32), "got a numpy ndarray. Convert it with torch.as_tensor"),
        ((np.zeros((1, 4)),), "got a numpy ndarray"),
        ({"x": np.zeros((1, 4))}, "got a numpy ndarray"),
        ((1, 4), r"got numbers. If they are a shape, pass torch.zeros\(1, 4\)"),
        ([1, 4], r"torch.zeros\(1, 4\)"),
        (torch.Size((1, 4)), r"torch.zeros\(1, 4\)"),
        (4, "got '4'"),
        ("cifar10", "got 'cifar10'"),
        (torch.zeros(0, 4), r"tensors with elements, got a float32 tensor of shape \(0, 4\). A batch of one"),
        ({"x": torch.zeros(0, 4)}, "A batch of one is enough"),
        (iter([torch.zeros(1, 4)]), "can't be read twice"),
        (torch.utils.data.DataLoader([torch.zeros(4)]), "got a DataLoader. Pass the inputs of one of its"),
        ({0: torch.zeros(1, 4)}, "keys are not the names of arguments"),
    ],
)
def test_inputs_that_are_none_are_told_by_what_was_expected(inputs: Any, said: str) -> None:
    with pytest.raises(TraceError, match=rf"^example_inputs: expected .*{said}"):
        trace(Net(), inputs)


def test_a_network_may_take_numbers() -> None:
    class Repeats(Net):
        def forward(self, times: int) -> Tensor:
            x: Tensor = torch.ones(1, 4)
            return self.second(self.first(x) * times)

    check(Repeats(), (3,))


class Patches(nn.Module):
    """A vision transformer that cuts patches itself, without a convolution."""

    def __init__(self, size: int, patch: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.norm, self.embed = nn.LayerNorm(channels * patch**2), nn.Linear(channels * patch**2, 24)
        self.pos_embedding = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, 24))
        self.cls_token, self.head = nn.Parameter(torch.zeros(1, 1, 24)), nn.Linear(24, 10)

    def forward(self, image: Tensor) -> Tensor:
        n, c, h, w = image.shape
        p = self.patch
        x = image.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, c * p * p)
        x = torch.cat([self.cls_token.expand(n, -1, -1), self.embed(self.norm(x))], 1)
        return self.head((x + self.pos_embedding)[:, 0])


class Convolved(nn.Module):
    """A vision transformer whose patches a convolution embeds."""

    def __init__(self, size: int, patch: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, patch, patch)
        self.register_buffer("position", torch.zeros((size // patch) ** 2, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head((self.stem(image).flatten(2).transpose(1, 2) + self.position).mean(1))


class Pooled(nn.Module):
    """A residual network's stem and stages, closed by a pool of fixed size."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AvgPool2d(kernel), nn.Flatten()
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        *[(partial(Patches, s, p), s) for s, p in [(32, 4), (64, 8), (224, 16), (48, 8), (96, 16)]],
        *[(partial(Convolved, s, p), s) for s, p in [(32, 4), (32, 8), (224, 16), (96, 8), (384, 16)]],
        *[(partial(Pooled, k), 4 * k) for k in (56, 100)],
    ],
)
def test_sizes_are_guessed_from_positions_and_pools(
    make: Callable[[], nn.Module], size: int, device: str
) -> None:
    with torch.device(device):
        model = make()
    graph = check(model)
    assert graph.nodes[0].shape == (1, 3, size, size)


def test_the_error_shows_the_attempt_that_got_furthest() -> None:
    class Particular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if x.shape[-1] != 64:
                raise ValueError("not even near")
            raise KeyError(str(self.head(x.relu().mean((2, 3))).shape))

    with pytest.raises(TraceError) as error:
        trace(Particular())
    text = str(error.value)
    first, others, *_ = text.splitlines()
    assert "shape (1, 3, 64, 64): KeyError" in first and "not even near" not in text
    assert others.startswith("nor on ") and "(1, 3, 32, 32)" in others and "(1, 3, 224, 224)" in others


def test_hooks_that_compute_a_weight_are_named_where_it_is_missing() -> None:
    def equalise(module: nn.Module, args: Any) -> None:
        module.weight = module.weight_orig * 2

    model = Net()
    model.first.weight_orig = nn.Parameter(model.first.weight.detach().clone())
    del model.first._parameters["weight"]
    model.first.register_forward_pre_hook(equalise)
    with pytest.raises(TraceError, match="Hooks do not run in a trace: .*'equalise' of 'first'.*parametrize"):
        trace(model, torch.zeros(1, 4))
    with pytest.raises(TraceError) as error:
        trace(Net(), torch.zeros(1, 7))
    assert "ooks" not in str(error.value)


def test_hooks_of_torch_that_compute_a_weight_are_followed_under_global_hooks() -> None:
    model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        found = trace(model, torch.zeros(1, 4))
    finally:
        handle.remove()
    assert seen(found) == {"0.weight_orig", "0.bias"} and found == trace(model, torch.zeros(1, 4))


def test_a_forward_hook_that_shapes_the_output_is_named_where_its_lack_is_felt() -> None:
    def halved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output[:, :3]

    model = Net()
    model.second = nn.Linear(3, 5)
    model.first.register_forward_hook(halved)
    with pytest.raises(TraceError, match="Hooks do not run in a trace: .*forward hook 'halved' of 'first'"):
        trace(model, torch.zeros(1, 4))


def test_properties_that_raise_are_no_hints_for_guesses() -> None:
    class Raising(nn.Sequential):
        @property
        def image_size(self) -> int:
            raise ValueError("not set")

        default_cfg = dummy_inputs = image_size

    check(Raising(nn.Conv2d(3, 4, 3)))


def test_no_arguments_are_called_so() -> None:
    with pytest.raises(TraceError, match="Net could not be run on no arguments: TypeError"):
        trace(Net(), ())


def test_a_model_on_meta_that_is_asked_for_its_values_is_told_what_helps() -> None:
    with torch.device("meta"):
        model = Net(lambda self, x: self.second(self.first(x)) * self.first.bias.max().item())
    with pytest.raises(TraceError, match="on the meta device has no values .* pass graph="):
        trace(model, torch.zeros(1, 4))
