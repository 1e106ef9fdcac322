"""Recalibration of BatchNorm against statistics computed from the activations themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_geninit as geninit
from tests.support.batchnorm import batches, buffers, net


def test_statistics_are_the_averages_over_batches_of_the_activations() -> None:
    model = net()
    model[1].running_mean.fill_(9.0)  # the past is forgotten
    model[1].num_batches_tracked.fill_(100)
    data = batches()
    assert geninit.recalibrate_bn_(model, data) is model
    with torch.no_grad():
        first = [model[0](x) for x in data]
        # Layers below normalise by their batch meanwhile.
        normed = [
            (a - a.mean((0, 2, 3), keepdim=True))
            / torch.sqrt(a.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5)
            for a in first
        ]
        second = [model[3](a) for a in normed]
    for layer, activations in ((model[1], first), (model[4], second)):
        mean = torch.stack([a.mean((0, 2, 3)) for a in activations]).mean(0)
        var = torch.stack([a.transpose(0, 1).flatten(1).var(1) for a in activations]).mean(0)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)
        assert int(layer.num_batches_tracked) == 3


def test_nothing_else_changes() -> None:
    model = net().train()
    model[3].eval()
    flags = [m.training for m in model.modules()]
    parameters = [p.detach().clone() for p in model.parameters()]
    rng = torch.get_rng_state()
    data = batches()
    torch.set_rng_state(rng)
    geninit.recalibrate_bn_(model, data)
    assert torch.equal(torch.get_rng_state(), rng), "dropout draws nothing in evaluation mode"
    assert [m.training for m in model.modules()] == flags
    assert model[1].momentum == 0.3 and model[4].momentum == 0.1
    assert all(map(torch.equal, parameters, model.parameters()))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_takes_a_data_loader_and_labels() -> None:
    inputs = torch.cat(batches())
    dataset = torch.utils.data.TensorDataset(inputs, torch.zeros(len(inputs)))
    a = geninit.recalibrate_bn_(net(), torch.utils.data.DataLoader(dataset, 4))
    b = geninit.recalibrate_bn_(net(), (x for x in inputs.split(4)))
    assert all(map(torch.equal, a.buffers(), b.buffers()))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.BatchNorm1d(3), (8, 3)),
        (nn.BatchNorm3d(3), (2, 3, 4, 4, 4)),
        (nn.SyncBatchNorm(3), (4, 3, 5, 5)),
        (nn.BatchNorm2d(3, affine=False, momentum=None), (4, 3, 5, 5)),
    ],
)
def test_every_kind_of_batch_norm(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + 2
    geninit.recalibrate_bn_(nn.Sequential(layer), [x, x])
    mean = x.transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(layer.running_mean, mean)


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_puts_everything_back(failure: type[BaseException]) -> None:
    model = net()
    geninit.recalibrate_bn_(model, batches((3,)))
    model.train()
    before = buffers(model)

    def failing() -> Iterator[Tensor]:
        yield from batches()
        raise failure

    with pytest.raises(failure):
        geninit.recalibrate_bn_(model, failing())
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert all(m.training for m in model.modules())
    assert model[1].momentum == 0.3

    with pytest.raises(RuntimeError):
        geninit.recalibrate_bn_(model, [*batches(), torch.zeros(1, 1, 1, 1)])
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("empty", [[], iter(())])
def test_no_batches_is_an_error_that_changes_nothing(empty: list[Tensor]) -> None:
    model = net()
    before = buffers(model)
    with pytest.raises(ValueError, match="no batches"):
        geninit.recalibrate_bn_(model, empty)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="batch 1: expected a tensor.*got str"):
        geninit.recalibrate_bn_(net(), ["abc"])


def test_without_running_statistics_the_model_is_not_called() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)
    )
    model.register_forward_hook(lambda *_: pytest.fail("called"))
    assert geninit.recalibrate_bn_(model, batches()) is model


@pytest.mark.parametrize("model", [net().to("meta"), nn.Sequential(nn.LazyBatchNorm2d())])
def test_models_without_values_are_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"statistics of '\d' are (lazy|on the meta device)"):
        geninit.recalibrate_bn_(model, batches())


def test_moves_to_the_models_precision_only_in_device() -> None:
    model = net().double()
    data = [x.double() for x in batches()]
    geninit.recalibrate_bn_(model, data)
    expected = geninit.recalibrate_bn_(net(), batches())
    torch.testing.assert_close(model[4].running_var.float(), expected[4].running_var)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(4, 3, 8, 8), TypeError, r"pass a DataLoader, or a single batch as \[batch\]"),
        (None, TypeError, "expected an iterable of batches, got NoneType"),
        ([{"x": torch.zeros(1)}], TypeError, "batch 1: expected a tensor .* got dict"),
        ([()], TypeError, "batch 1: .* got tuple"),
        ([torch.zeros(4, 3, 8, 8), torch.zeros(0, 3, 8, 8)], ValueError, "batch 2: .* empty"),
        ([torch.full((4, 3, 8, 8), torch.nan)], ValueError, "batch 1: expected finite values"),
        ([torch.full((4, 3, 8, 8), 1e38)], ValueError, "statistics of '[14]' would not be finite"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(
    given: object, error: type[Exception], message: str
) -> None:
    model = net()
    before = buffers(model)
    with pytest.raises(error, match=message):
        geninit.recalibrate_bn_(model, given)  # type: ignore[arg-type]
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 8, 8), torch.zeros(4, 1, 8, 8), torch.zeros(4, 3, 8, 8).byte()]
)
def test_what_the_model_refuses_is_said_of_which_batch(batch: Tensor) -> None:
    with pytest.raises(Exception) as caught:
        geninit.recalibrate_bn_(net(), [batch])
    (note,) = caught.value.__notes__
    assert f"on batch 1: a {batch.dtype} tensor of shape {tuple(batch.shape)}" in note


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        geninit.recalibrate_bn_(None, batches())  # type: ignore[type-var]


class Switchable(nn.Module):
    """One of its two norms is used at a time, as in slimmable networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.chosen = nn.Conv2d(3, 4, 3), 0
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.chosen](self.conv(x))


def test_layers_that_no_batch_reaches_keep_their_statistics_and_are_named() -> None:
    model = Switchable()
    nn.init.uniform_(model.norms[0].running_mean)
    before = buffers(model.norms[0])
    model.chosen = 1
    with pytest.warns(geninit.GenInitWarning, match=r"keeps the statistics of 1 of 2 .*'norms.0'") as caught:
        geninit.recalibrate_bn_(model, batches())
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(torch.equal(b, before[n]) for n, b in model.norms[0].named_buffers())
    assert int(model.norms[1].num_batches_tracked) == 3


def test_a_layer_that_only_some_batches_reach_averages_over_these() -> None:
    class Sometimes(Switchable):
        def forward(self, x: Tensor) -> Tensor:
            self.chosen = 1 - self.chosen
            return super().forward(x)

    data = batches()
    model = geninit.recalibrate_bn_(Sometimes(), data)
    with torch.no_grad():
        means = [model.conv(x).mean((0, 2, 3)) for x in data]
    torch.testing.assert_close(model.norms[0].running_mean, means[1])
    torch.testing.assert_close(model.norms[1].running_mean, (means[0] + means[2]) / 2)


def test_statistics_that_no_batch_can_change_are_refused_by_name() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"'0' are an inference tensor.*outside torch.inference_mode"):
        geninit.recalibrate_bn_(model, batches())
    with FakeTensorMode():
        model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="'0' are fake"):
        geninit.recalibrate_bn_(model, batches())


def test_a_model_that_overrides_its_own_lists_is_calibrated_all_the_same() -> None:
    class Private(nn.Sequential):
        def modules(self, *_: object, **__: object) -> Iterator[nn.Module]:
            raise RuntimeError

        named_modules = modules  # type: ignore[assignment]

    model = geninit.recalibrate_bn_(Private(nn.BatchNorm2d(3)), batches())
    assert int(model[0].num_batches_tracked) == 3
