"""Forward passes that break other tracers: containers, control flow, custom functions; and errors."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.tracing import Net, check, operations, seen
from torch_geninit.graph.tracer.trace import TraceError, trace
from torch_geninit.training.networks.resnet import resnet20

# What forward takes and returns.


@dataclasses.dataclass
class Batch:
    x: Tensor
    scale: float = 2.0


class Output(NamedTuple):
    logits: Tensor
    extra: dict[str, Any]


class Holder:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("get", "inputs"),
    [
        (lambda x: x, torch.zeros(1, 4)),
        (lambda x: x, (torch.zeros(1, 4),)),
        (lambda x: x, [torch.zeros(1, 4)]),
        (lambda x: x, {"x": torch.zeros(1, 4)}),
        (lambda x: x["a"][0], {"x": {"a": [torch.zeros(1, 4)]}}),
        (lambda x: x.x * x.scale, Batch(torch.zeros(1, 4))),
        (lambda x: x.x, (Batch(torch.zeros(1, 4, device="meta")),)),
        (lambda x: x.value, Holder(torch.zeros(1, 4))),
    ],
)
@pytest.mark.parametrize(
    "put",
    [
        lambda x: x,
        lambda x: {"logits": x},
        lambda x: Output(x, {"a": [x]}),
        lambda x: Batch(x),
        lambda x: Holder(x),
        lambda x: (None, [x], 3),
    ],
)
def test_any_container_goes_in_and_out(
    get: Callable[[Any], Tensor], inputs: Any, put: Callable[[Tensor], Any]
) -> None:
    architecture = check(Net(lambda self, x: put(self.second(self.first(get(x)).relu()))), inputs)
    assert operations(architecture) == ["input", "linear", "relu", "linear", "output"]
    assert architecture.edges == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert architecture.nodes[-1].shape == (1, 5)


def test_several_inputs_and_outputs() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Embedding(9, 3), nn.Linear(3, 2)

        def forward(
            self, x: Tensor, tokens: Tensor, flag: bool = False, *, bias: Tensor | None = None
        ) -> Any:
            h = self.a(x) + self.b(tokens)
            return {"h": h, "out": self.c(h if bias is None else h + bias)}

    tokens = torch.zeros(1, dtype=torch.int64)
    architecture = check(Several(), {"x": torch.zeros(1, 4), "tokens": tokens, "bias": torch.zeros(1, 3)})
    assert operations(architecture) == ["input"] * 3 + [
        "linear",
        "embedding",
        "add",
        "add",
        "linear",
        "output",
    ]
    assert (5, 8) in architecture.edges and (7, 8) in architecture.edges
    assert operations(check(Several(), (torch.zeros(1, 4), tokens))).count("input") == 2


def test_an_unused_input_stays_and_dead_ends_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        (x * x).exp()
        return self.second(self.first(x))

    assert operations(check(Net(forward))) == ["input", "linear", "linear", "output"]


def test_unreached_parameters_are_named_in_the_notes() -> None:
    architecture = trace(Net(lambda self, x: self.first(x)))
    assert seen(architecture) == {"first.weight", "first.bias"}
    assert any("second.bias, second.weight" in note for note in architecture.notes)


def test_auxiliary_heads_are_found_in_train_mode() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.first(x)
        return (self.second(x), x) if self.training else x

    check(Net(forward))


def test_the_guess_in_the_notes_is_the_one_that_reached_the_auxiliary_head() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.extra = nn.Conv2d(3, 4, 7, 2), nn.Conv2d(4, 2, 140)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return (self.extra(x), x) if self.training else x

    architecture = check(Auxiliary())
    assert architecture.notes == ("inputs guessed: float32 tensor of shape (1, 3, 299, 299)",)
    assert architecture.nodes[0].shape == (1, 3, 299, 299)


# Control flow.


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(self.first(x)) if x.sum() >= 0 else self.first(x),
        lambda self, x: self.second(self.first(x) * x.abs().max().item()),
        lambda self, x: self.second(self.first(x)[x[:, 0] >= 0]),
        lambda self, x: self.second(self.first(x[torch.nonzero(x[:, 0] == 0)[:, 0]])),
        lambda self, x: self.second(self.first(x) * float(x.numpy().sum() + 1)),
        lambda self, x: self.second(self.first(x)) * len(x.tolist()),
    ],
)
def test_a_model_may_ask_for_values(forward: Callable[[Any, Tensor], Any]) -> None:
    check(Net(forward), torch.zeros(2, 4))
    with torch.device("meta"):
        model = Net(forward)
    with pytest.raises(TraceError, match="Net could not be run"):
        trace(model, torch.zeros(2, 4))


def test_constants_have_values_even_without_data() -> None:
    """Masks and rates that don't depend on the input are computed, also for a model on meta."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mask = torch.tensor([True, False, True, True])
        rates = torch.linspace(0, 1, 3, device=x.device)
        if rates[-1].item() != 1.0 or int(mask.sum()) != 3:
            raise ValueError
        buffer = torch.zeros(x.shape[0], 6, device=x.device)
        buffer[:, :3] = self.first(x)[:, :3] * rates
        buffer[:, 3:] = x[:, mask]
        return self.second(buffer)

    with torch.device("meta"):
        model = Net(forward)
    architecture = check(model)
    assert operations(architecture) == ["input", "linear", "concat", "linear", "output"]
    assert architecture.edges == ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x.requires_grad_(), use_reentrant=reentrant))

    assert operations(check(Net(forward))) == ["input", "linear", "linear", "output"]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.sinh(x @ weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


def test_custom_autograd_functions() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = Double.apply(x, self.first.weight.t()) + self.first.bias
        return Double.apply(h, self.second.weight.t()) + self.second.bias

    assert operations(check(Net(forward))) == ["input", *["linear", "activation", "bias"] * 2, "output"]


def test_in_place_operations_are_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        left = h[:, :3]
        left.relu_()
        h.add_(1).mul_(h.sigmoid())
        return self.second(h)

    architecture = check(Net(forward))
    assert operations(architecture) == [
        "input",
        "linear",
        "relu",
        "sigmoid",
        "mul",
        "linear",
        "output",
    ] or operations(architecture) == ["input", "linear", "relu", "silu", "linear", "output"]


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_traced_submodules() -> None:
    scripted = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.ReLU())), nn.Linear(6, 2))
    expected = ["input", "linear", "relu", "linear", "output"]
    for dtype in (torch.float32, torch.bfloat16):
        assert operations(check(scripted.to(dtype), torch.zeros(1, 4))) == expected
        assert all(parameter.dtype == dtype for parameter in scripted.parameters())
    assert (
        operations(check(torch.jit.script(nn.Sequential(nn.Linear(4, 6))), torch.zeros(1, 4)))[1] == "linear"
    )
    graph = torch.fx.symbolic_trace(Net())
    assert operations(check(graph, torch.zeros(1, 4))) == expected


@pytest.mark.system
def test_a_chain_of_two_thousand_layers_takes_linear_work() -> None:
    """Counted in calls, the same on a busy machine; a quadratic walk makes sixteen times as many."""

    def calls(depth: int) -> int:
        with torch.device("meta"):
            model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth)])
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            architecture = check(model)
        finally:
            sys.setprofile(None)
        assert len(architecture.nodes) == 2 * depth + 2
        return count

    calls(10)
    assert calls(2000) < 5 * calls(500)


# Errors.


def test_a_lazy_model_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"'1\.weight'"):
        trace(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), torch.zeros(1, 4))


def test_nothing_to_guess_from() -> None:
    with pytest.raises(TraceError, match="example_inputs="):
        trace(nn.ReLU())
    assert operations(trace(nn.ReLU(), torch.zeros(2))) == ["input", "relu", "output"]


def test_no_module() -> None:
    with pytest.raises(TypeError, match="torch.nn.Module"):
        trace(lambda x: x)  # type: ignore[arg-type]


def test_a_wrong_example_says_what_it_was() -> None:
    with pytest.raises(
        TraceError, match=r"(?s)float32 tensor of shape \(1, 7\).*mat1 and mat2.*check example_inputs="
    ):
        trace(Net(), torch.zeros(1, 7))


def test_copies_are_traced_like_their_original() -> None:
    model = resnet20()
    assert trace(copy.deepcopy(model)) == trace(model)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_in_words(layout: torch.layout) -> None:
    """Those of layout jagged end the process if an exception passes where torch expects none."""
    parts = [torch.zeros(3, 4), torch.zeros(5, 4)]
    with pytest.raises(TraceError, match="example_inputs: a nested tensor .* pad it"):
        trace(Net(), torch.nested.nested_tensor(parts, layout=layout))

    def forward(self: Any, x: Tensor) -> Tensor:
        nested = torch.nested.as_nested_tensor([x[0, :3], x[1]], layout=layout)
        return torch.nested.to_padded_tensor(self.second(self.first(nested)), 0.0)

    with pytest.raises(TraceError, match="Net could not be run on .* a nested tensor .* graph="):
        trace(Net(forward), torch.zeros(2, 5, 4))
