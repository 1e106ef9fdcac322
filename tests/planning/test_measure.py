"""Measuring a prediction on its probe: the right answer for each kind of network, and no trace on it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from tests.support.contract import random_state, state
from tests.support.probes import with_other_classes, with_probe
from tests.support.resnets import resnet8
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.planning import measure as measuring
from torch_geninit.planning import prediction as predictions
from torch_geninit.planning.measure import cost, he, nearest_mean, statistics_of
from torch_geninit.planning.trust import Measured, above_chance, ahead_of_he, interval, judge
from torch_geninit.training.networks.resnet import ResNet, resnet20


def measured(model: nn.Module, generator: WeightGenerator, **options: Any) -> Measured:
    plan = geninit.plan(model, pretrained=generator, **options)
    assert plan.verdict is not None and plan.verdict.measured is not None, plan.verdict
    return plan.verdict.measured


class Around(nn.Module):
    """A ResNet-8 whose input and output are handed through functions."""

    def __init__(self, before: Any = None, after: Any = None, classes: int = 10) -> None:
        super().__init__()
        self.net = resnet8(classes)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        out = self.net(x if self.before is None else self.before(x))
        return out if self.after is None else self.after(out)


@pytest.fixture(scope="module")
def usual(shipped: WeightGenerator) -> Measured:
    return measured(resnet8(), shipped)


class TestKindsOfNetworks:
    """The same network in other clothes measures the same."""

    SAME: dict[str, Callable[[], nn.Module]] = {
        "input norm": lambda: Around(nn.BatchNorm2d(3)),
        "log-softmax": lambda: Around(after=nn.LogSoftmax(1)),
        "several outputs": lambda: Around(after=lambda out: {"mean": out.mean(), "logits": out}),
        "scores with room around": lambda: Around(after=lambda out: out[:, :, None, None]),
        "data parallel": lambda: nn.DataParallel(resnet8()),
        "bfloat16": lambda: resnet8().bfloat16(),
        "synchronised norms": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(resnet8()),
        "other classes": lambda: resnet8(100),
        "frozen classifier": lambda: _frozen(resnet8(), "fc"),
    }

    @pytest.mark.parametrize("which", SAME)
    def test_as_the_plain_one(self, which: str, shipped: WeightGenerator, usual: Measured) -> None:
        assert usual.right is not None and usual.right > 120
        found = measured(self.SAME[which](), shipped, example_inputs=torch.zeros(1, 3, 32, 32))
        # One image more or less: the graph of another output is not quite the same.
        assert found.right == pytest.approx(usual.right, abs=2)
        assert found.images == 160 and judge(found).trusted

    def test_without_a_classifier_the_features_tell(self, shipped: WeightGenerator) -> None:
        whole = resnet20()
        body = nn.Sequential(*list(whole.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found, usual = measured(body, shipped), measured(whole, shipped)
        assert found.right is None and found.near == pytest.approx(usual.near, abs=16)
        assert judge(found).trusted and found.gained is not None

    def test_images_of_other_classes_are_told_apart_by_the_features(self, shipped: WeightGenerator) -> None:
        other = with_other_classes(shipped)
        assert other.probe is not None
        found = measured(resnet8(), other)
        assert (found.right, found.classes) == (None, 2), "its classifier knows neither of the two"
        model = geninit.ghn_(resnet8(), pretrained=shipped).train()
        read: list[Tensor] = []
        model.fc.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        with torch.no_grad():
            model(measuring.prepared(other.probe, shipped.config["input"], (3, 32, 32)))
        near = nearest_mean(read[0], other.probe.labels, 2)
        assert near is not None and found.near == pytest.approx(int(near.sum()), abs=1)

    def test_in_grey(self, shipped: WeightGenerator) -> None:
        model = resnet8()
        model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        found = measured(model, shipped)
        assert found.size == (1, 32, 32) and above_chance(found)

    def test_of_another_size(self, shipped: WeightGenerator) -> None:
        found = measured(resnet8(), shipped, example_inputs=torch.zeros(1, 3, 40, 48))
        assert found.size == (3, 40, 48) and judge(found).trusted

    def test_named_arguments(self, shipped: WeightGenerator, usual: Measured) -> None:
        found = measured(resnet8(), shipped, example_inputs={"x": torch.zeros(2, 3, 32, 32)})
        assert found.right == usual.right

    def test_a_part_is_measured_as_the_network_will_be(
        self, shipped: WeightGenerator, usual: Measured
    ) -> None:
        torch.manual_seed(0)
        model = resnet8()
        found = measured(model, shipped, include="layer3.*")
        assert found.right is not None and not above_chance(found), "one filled stage among random ones"
        geninit.ghn_(model, pretrained=shipped)
        again = measured(model, shipped, include="layer3.*")
        assert again.right == usual.right, "the rest holds what it would have been given"

    def test_frozen_layers_keep_what_they_hold(self, shipped: WeightGenerator) -> None:
        torch.manual_seed(0)
        found = geninit.plan(_frozen(resnet8(), "layer2"), pretrained=shipped)
        assert found.verdict is not None and not found.verdict.trusted


def _frozen(model: nn.Module, part: str) -> nn.Module:
    model.get_submodule(part).requires_grad_(False)
    return model


class Failing(nn.Sequential):
    """Runs on one image of a trace, and fails on more."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return super().forward(x)  # type: ignore[no-any-return]


class TestUnmeasured:
    """What can't be run is judged by its layers alone, and said to be unmeasured."""

    def reason(self, model: nn.Module, generator: WeightGenerator, **options: Any) -> str:
        plan = geninit.plan(model, pretrained=generator, **options)
        assert plan.verdict is not None and plan.verdict.measured is None and plan.verdict.trusted
        assert plan.verdict.reason.startswith("unmeasured, judged by its layers alone: ")
        return plan.verdict.reason

    def test_on_meta(self, shipped: WeightGenerator) -> None:
        assert "meta device" in self.reason(resnet8().to("meta"), shipped)

    def test_no_probe(self, ghn: WeightGenerator) -> None:
        assert "no probe" in self.reason(resnet8(), ghn)

    def test_no_image(self, ghn: WeightGenerator) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
        assert "its input is no image" in self.reason(model, with_probe(ghn))
        channels = nn.Sequential(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
        inputs = torch.zeros(1, 5, 8, 8)
        assert "its input is no image" in self.reason(channels, with_probe(ghn), example_inputs=inputs)

    def test_too_dear(self, shipped: WeightGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        each = cost(geninit.trace(resnet8()))
        monkeypatch.setattr(measuring, "BUDGET", 33 * each)
        monkeypatch.setattr(measuring, "MOST", 33 * each)
        assert measured(resnet8(), shipped).images == 33
        monkeypatch.setattr(measuring, "BUDGET", 20 * each)
        assert measured(resnet8(), shipped).images == 32, "never fewer"
        monkeypatch.setattr(measuring, "MOST", 31 * each)
        why = self.reason(resnet8(), shipped)
        assert f"at 3 x 32 x 32 an image takes {each:.2g} multiplications, too many to try it" in why

    def test_too_dear_at_its_size_is_tried_on_images_of_their_own(
        self, shipped: WeightGenerator, usual: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "BUDGET", 161 * cost(geninit.trace(resnet8())))
        monkeypatch.setattr(measuring, "MOST", 0.0)
        large = torch.zeros(1, 3, 128, 128)
        found = measured(resnet8(), shipped, example_inputs=large)
        assert (found.size, found.images) == ((3, 32, 32), 160) and found.right == pytest.approx(
            usual.right, abs=8
        )
        fixed = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 128 * 128, 10))
        monkeypatch.setattr(measuring, "BUDGET", 3 * cost(geninit.trace(fixed, large)))
        assert "at 3 x 128 x 128 an image takes" in self.reason(fixed, shipped, example_inputs=large)

    def test_can_not_be_run(self, ghn: WeightGenerator) -> None:
        model = Failing(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
        text = self.reason(model, with_probe(ghn), example_inputs=torch.zeros(1, 3, 8, 8))
        assert "could not be run on the probe (RuntimeError: one at a time)" in text


class TestManners:
    def test_the_model_is_not_touched(self, shipped: WeightGenerator) -> None:
        class Counting(ResNet):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return super().forward(x)

        model = Counting((3, 3, 3), (16, 32, 64), 10)
        model.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
        before, values, random = state(model), copy.deepcopy(model.state_dict()), random_state()
        measured(model, shipped)
        assert state(model) == before and model.calls == 0
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert random_state() == random

    def test_values_of_the_model_play_no_part(self, shipped: WeightGenerator, usual: Measured) -> None:
        model = resnet8()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.fill_(float("nan"))
        assert measured(model, shipped)[:7] == usual[:7]


@pytest.fixture(scope="module")
def member() -> nn.Module:
    """What the initialiser makes of seed 3."""
    return geninit.noise_ghn_(resnet8(), 3)


class TestStatistics:
    def test_the_network_can_be_evaluated_at_once(self, shipped: WeightGenerator, usual: Measured) -> None:
        model = geninit.ghn_(resnet8(), pretrained=shipped).eval()
        by_hand = resnet8()
        by_hand.load_state_dict(model.state_dict())
        assert shipped.probe is not None
        images = measuring.prepared(shipped.probe, shipped.config["input"], (3, 32, 32))
        geninit.recalibrate_bn_(by_hand, [images])
        for name, buffer in model.named_buffers():
            assert torch.allclose(buffer, by_hand.get_buffer(name), rtol=1e-3, atol=1e-4), name
        with torch.no_grad():
            right = int((model(images).argmax(1) == shipped.probe.labels).sum())
        assert right == pytest.approx(usual.right, abs=4)

    def test_they_can_be_kept(self, shipped: WeightGenerator) -> None:
        before = {name: buffer.clone() for name, buffer in resnet8().named_buffers()}
        for model in (
            geninit.ghn_(resnet8(), pretrained=shipped, statistics="keep"),
            geninit.plan(resnet8(), pretrained=shipped).write_(resnet8(), statistics="keep"),
        ):
            assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        with pytest.raises(ValueError, match="statistics: expected 'fill' or 'keep', got 'drop'"):
            geninit.ghn_(resnet8(), pretrained=shipped, statistics="drop")  # type: ignore[arg-type]

    def test_a_plan_writes_the_same_part_by_part(self, shipped: WeightGenerator) -> None:
        whole = geninit.ghn_(resnet8(), pretrained=shipped)
        model = nn.DataParallel(resnet8())
        prediction = geninit.plan(model, pretrained=shipped).predict()
        for part in model.module.children():
            prediction.write_(part)
        for name, value in whole.state_dict().items():
            assert torch.equal(model.module.state_dict()[name], value), name

    def test_frozen_norms_keep_theirs(self, shipped: WeightGenerator) -> None:
        model = geninit.ghn_(resnet8(), pretrained=shipped)
        _frozen(model, "layer1")
        with torch.no_grad():
            for _, buffer in model.named_buffers():
                buffer.fill_(3)
        geninit.ghn_(model, pretrained=shipped)
        for name, buffer in model.named_buffers():
            assert bool((buffer == 3).all()) == name.startswith("layer1."), name

    def test_each_noisy_member_has_its_own(self) -> None:
        generator = geninit.load("noise-ghn-cifar10")
        one, other = (geninit.noise_ghn_(resnet8(), seed, pretrained=generator) for seed in (0, 3))
        assert not torch.allclose(one.bn1.running_mean, other.bn1.running_mean, atol=1e-3)
        assert generator.probe is not None
        images = measuring.prepared(generator.probe, generator.config["input"], (3, 32, 32))
        by_hand = copy.deepcopy(other)
        geninit.recalibrate_bn_(by_hand, [images])
        for name, buffer in other.named_buffers():
            assert torch.allclose(buffer, by_hand.get_buffer(name), rtol=1e-3, atol=1e-4), name

    @staticmethod
    def same(one: nn.Module, other: nn.Module) -> bool:
        mine, others = one.state_dict(), other.state_dict()
        return all(torch.equal(mine[name], others[name]) for name in others)

    def test_a_plan_gives_a_noisy_member_those_that_the_initialiser_gives(self, member: nn.Module) -> None:
        plan = geninit.plan(resnet8(), "noise_ghn")
        assert self.same(plan.write_(resnet8(), seed=3), member)
        again = pickle.loads(pickle.dumps(plan))
        assert self.same(again.write_(resnet8(), seed=3), member)

    def test_a_plan_keeps_those_of_a_noisy_member_as_asked(self) -> None:
        written = geninit.plan(resnet8(), "noise_ghn").write_(resnet8(), seed=3, statistics="keep")
        fresh = dict(resnet8().named_buffers())
        assert all(torch.equal(buffer, fresh[name]) for name, buffer in written.named_buffers())

    def test_a_noisy_member_is_run_once_for_all_of_its_parts(
        self, member: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = resnet8()
        prediction = geninit.plan(model, "noise_ghn").predict(seed=3)
        runs: list[nn.Module] = []
        monkeypatch.setattr(
            predictions, "statistics_of", lambda *a: (runs.append(a[1]), statistics_of(*a))[1]
        )
        for part in model.children():
            prediction.write_(part)
        assert self.same(model, member) and runs == [model]


class TestRule:
    @pytest.mark.parametrize(("right", "images"), [(0, 32), (20, 160), (80, 160), (160, 160)])
    def test_interval_is_wilsons(self, right: int, images: int) -> None:
        stats = pytest.importorskip("scipy.stats")
        expected = stats.binomtest(right, images).proportion_ci(method="wilson")
        assert interval(right, images) == pytest.approx((expected.low, expected.high), abs=1e-4)

    @staticmethod
    def found(right: int | None, gained: int | None = None, lost: int | None = None) -> Measured:
        return Measured(160, 10, (3, 32, 32), right, 40, gained, lost, {})

    def test_surely_above_chance(self) -> None:
        assert above_chance(self.found(40)) and not above_chance(self.found(24))
        assert not above_chance(self.found(None))

    def test_surely_ahead_of_he(self) -> None:
        assert ahead_of_he(self.found(16, 40, 10)) and not ahead_of_he(self.found(16, 12, 10))
        assert not ahead_of_he(self.found(16, 10, 40)) and not ahead_of_he(self.found(16, 0, 0))
        assert judge(self.found(16, 40, 10)).trusted and not judge(self.found(16, 12, 10)).trusted

    def test_nearest_mean_leaves_the_image_out(self) -> None:
        labels = torch.arange(12) % 3
        features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(5)[labels]
        expected = []
        for i in range(12):
            others = [j for j in range(12) if j != i]
            means = [features[[j for j in others if labels[j] == c]].mean(0) for c in range(3)]
            expected.append(min(range(3), key=lambda c: float((features[i] - means[c]).norm())) == labels[i])
        found = nearest_mean(features, labels, 3)
        assert found is not None and found.tolist() == expected and 0 < sum(expected) < 12
        assert nearest_mean(features[:5], labels[:5], 3) is None, "one image of a class has no others"

    def test_he_is_hes(self, ghn: WeightGenerator) -> None:
        drawn = he(geninit.plan(resnet8(), pretrained=ghn).generated)
        weight = drawn["layer3.0.conv2.weight"].expand()
        assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
        assert bool((drawn["bn1.weight"].expand() == 1).all() and (drawn["fc.bias"].expand() == 0).all())
