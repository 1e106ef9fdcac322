"""Recalibration of layers and models of every form: scripted, exported, of another's arithmetic, frozen."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_geninit as geninit
from tests.support.batchnorm import batches, buffers, net


def _scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def _traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model.eval(), batches()[0])


def _traced_in_training(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model.train(), batches()[0], check_trace=False)


def _exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model.eval(), (batches()[0],)).module()


def _decomposed(model: nn.Module) -> nn.Module:
    return torch.export.export(model.eval(), (batches()[0],)).run_decompositions().module()


def _part_scripted(model: nn.Module) -> nn.Module:
    return nn.Sequential(*model[:3], torch.jit.script(model[3:]))


def _compiled(model: nn.Module) -> nn.Module:
    compiled = torch.compile(model, backend="eager")
    compiled(batches()[0])
    return compiled


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Converting a tensor"
)
@pytest.mark.parametrize(
    "make", [_scripted, _traced, _traced_in_training, _exported, _decomposed, _part_scripted, _compiled]
)
def test_other_forms_of_a_model_get_the_statistics_of_the_model(
    make: Callable[[nn.Module], nn.Module],
) -> None:
    plain = net()
    plain[2].p = 0.0  # tracing in training mode keeps the dropout
    other = make(plain)
    expected = geninit.recalibrate_bn_(net(), batches())
    with warnings.catch_warnings():
        warnings.simplefilter("error", geninit.GenInitWarning)
        geninit.recalibrate_bn_(other, batches())
    for (name, got), (_, want) in zip(other.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(got, want, msg=f"{name} of {make.__name__}")


class HandsOn(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        rest = self.weight, self.bias, self.training, self.momentum, self.eps
        return F.batch_norm(x, self.running_mean, self.running_var, *rest)


class ByHand(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        if self.training:
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
            self.running_var = torch.lerp(self.running_var, var, self.momentum)
        return (x - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()


class OnCopies(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.clone(), self.running_var.clone()
        out = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return out


class Halves(nn.BatchNorm2d):
    """Each half of a batch is normalised on its own, as in ghost BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Halves, self).forward(half) for half in x.chunk(2)])


class OfItsOwn(nn.Module):
    """No BatchNorm by descent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


@pytest.mark.parametrize("kind", [HandsOn, ByHand, OnCopies, Halves, OfItsOwn])
def test_layers_with_a_forward_of_their_own_average_alike(kind: Callable[[int], nn.Module]) -> None:
    layer = kind(3)
    layer.running_mean.fill_(torch.nan)  # the past is forgotten
    tensors = dict(layer.named_buffers())
    forward, momentum = layer.__dict__.get("forward"), getattr(layer, "momentum", None)
    data = batches()
    parts = [half for x in data for half in x.chunk(2)] if kind is Halves else data
    with warnings.catch_warnings():
        warnings.simplefilter("error", geninit.GenInitWarning)
        geninit.recalibrate_bn_(nn.Sequential(layer), data)
    torch.testing.assert_close(
        layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in parts]).mean(0), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(layer.running_var, torch.stack([x.var((0, 2, 3)) for x in parts]).mean(0))
    assert all(b is tensors[name] for name, b in layer.named_buffers()), "written in place"
    assert layer.__dict__.get("forward") is forward and getattr(layer, "momentum", None) == momentum


def test_a_layer_that_updates_nothing_keeps_its_statistics_and_is_named() -> None:
    class Fixed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x - self.running_mean[:, None, None]

    model = nn.Sequential(Fixed(3))
    nn.init.uniform_(model[0].running_mean)
    before = buffers(model)
    with pytest.warns(geninit.GenInitWarning, match="'0': its forward does not update them"):
        geninit.recalibrate_bn_(model, batches())
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


@pytest.mark.filterwarnings("error::torch_geninit.GenInitWarning")
def test_frozen_layers_and_instance_norms_are_left_alone() -> None:
    class FrozenNorm(OfItsOwn):
        pass

    model = nn.Sequential(FrozenNorm(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3))
    before = buffers(model[:2])
    geninit.recalibrate_bn_(model, batches())
    assert all(torch.equal(b, before[n]) for n, b in model[:2].named_buffers())
    assert int(model[2].num_batches_tracked) == 3


def test_layers_that_share_their_statistics_average_over_all_calls() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.BatchNorm2d(3, affine=False))
    model[2]._buffers.update(model[0]._buffers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", geninit.GenInitWarning)
        geninit.recalibrate_bn_(model, batches())
    assert int(model[0].num_batches_tracked) == 6
