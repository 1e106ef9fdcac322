"""What a generator says about networks it never saw, against slow twins and its own promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.trust.accuracy import LEAST_HALF, MeasuredNetworks, describe
from torch_geninit.graph.tracer.trace import trace
from torch_geninit.training.evaluate.accuracy_model import (
    calibration,
    fit,
    leave_one_out,
    resnet_specs,
    specs_to_fit,
)
from torch_geninit.training.evaluate.heldout import unseen_specs
from torch_geninit.training.networks.resnet import ResNet, resnet20
from torch_geninit.training.networks.search_space import WEIGHTS

EXAMPLE = torch.zeros(1, 3, 32, 32)


def described(graph: geninit.Architecture) -> torch.Tensor:
    return describe(graph, 0.0, 0.0, classes=10)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Networks whose accuracy falls with depth and width in a way that a regression can find."""
    found = []
    for depth in (1, 2, 3, 5):
        for width in (8, 12, 16, 24):
            graph = trace(ResNet((depth, depth), (width, width)), EXAMPLE)
            accuracy = 0.8 - 0.05 * math.log2(depth) + 0.04 * math.log2(width / 8)
            name = f"{depth} blocks, width {width}"
            found.append({"network": name, "point": described(graph).tolist(), "accuracy": accuracy})
    return found


@pytest.fixture(scope="module")
def record(records: list[dict[str, Any]]) -> dict[str, Any]:
    return fit(records, classes=10, images="noise")


def test_process_against_the_textbook(record: dict[str, Any]) -> None:
    network = trace(ResNet((4, 4), (20, 20)), EXAMPLE)
    told = MeasuredNetworks(record)(described(network))

    def covariance(a: list[float], b: list[float]) -> float:
        scaled = [(x - y) / s for x, y, s in zip(a, b, record["spread"], strict=True)]
        return record["signal"] ** 2 * math.exp(-math.hypot(*scaled) / record["length"])

    points, x = record["points"], described(network).tolist()
    gram = torch.tensor([[covariance(a, b) for a in points] for b in points], dtype=torch.float64)
    gram += record["noise"] ** 2 * torch.eye(len(points))
    towards = torch.tensor([covariance(x, a) for a in points], dtype=torch.float64)
    weights = torch.linalg.solve(gram, towards)
    mean = 0.1 + float(weights @ (torch.tensor(record["accuracy"], dtype=torch.float64) - 0.1))
    variance = record["signal"] ** 2 + record["noise"] ** 2 - float(weights @ towards)
    half = max(record["quantile"] * variance**0.5, LEAST_HALF)
    assert told[:3] == pytest.approx((mean, mean - half, min(1.0, mean + half)), rel=1e-4)


def test_leaving_one_out_is_what_a_process_without_it_says(record: dict[str, Any]) -> None:
    errors, variances = leave_one_out(MeasuredNetworks(record))
    for index in (0, 7, 15):
        without = copy.deepcopy(record)
        for entry in ("networks", "points", "accuracy"):
            del without[entry][index]
        told = MeasuredNetworks(without | {"quantile": 1.0})(torch.tensor(record["points"][index]))
        assert record["accuracy"][index] - told.accuracy == pytest.approx(float(errors[index]), abs=1e-6)
        half = max(float(variances[index].sqrt()), LEAST_HALF)
        assert (told.high - told.low) / 2 == pytest.approx(half, rel=1e-4)


def test_fit_finds_what_there_is_to_find(record: dict[str, Any]) -> None:
    told = MeasuredNetworks(record)(described(trace(ResNet((4, 4), (20, 20)), EXAMPLE)))
    assert told.accuracy == pytest.approx(0.8 - 0.05 * 2 + 0.04 * math.log2(20 / 8), abs=0.02)
    assert told.low < told.accuracy < told.high
    assert "blocks, width" in told.nearest[0] and told.distance > 0


def test_far_from_everything_chance_is_expected(record: dict[str, Any]) -> None:
    near = MeasuredNetworks(record)
    away = torch.tensor(record["points"][0]) + 1000
    assert near(away).accuracy == pytest.approx(0.1, abs=1e-3)
    assert near(away).distance > 100 * near(torch.tensor(record["points"][0])).distance


def test_interval_holds_nine_of_ten_left_out(record: dict[str, Any]) -> None:
    errors, variances = leave_one_out(MeasuredNetworks(record))
    inside = errors.abs() <= record["quantile"] * variances.sqrt() + 1e-9
    assert 0.8 <= inside.double().mean() <= 1.0


def test_calibration_counts(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    inside = [dict(one, distance=0.0, generated=1.0) for one in records]
    held = [dict(one, accuracy=one["accuracy"] + 0.5) for one in inside[:2]]
    counted = calibration([*inside[2:], *held], MeasuredNetworks(record), 0.02)
    assert counted["inside_interval"] == pytest.approx(14 / 16)
    assert counted["mean_error"] == pytest.approx(-1 / 16, abs=0.01)


@pytest.mark.parametrize("outside", [{"distance": 0.03}, {"generated": 0.9}])
def test_calibration_expects_chance_outside(
    records: list[dict[str, Any]], record: dict[str, Any], outside: dict[str, float]
) -> None:
    strange = [dict(one, accuracy=0.1) | {"distance": 0.0, "generated": 1.0} | outside for one in records]
    counted = calibration(strange, MeasuredNetworks(record), 0.02)
    assert counted["mean_absolute_error"] == pytest.approx(0, abs=1e-9)
    assert counted["inside_interval"] == 1 and counted["correlation"] is None


def test_description_reads_no_names(record: dict[str, Any]) -> None:
    graph = trace(resnet20(), EXAMPLE)
    nodes = tuple(
        replace(node, parameters=tuple(replace(use, name=f"x.{use.name}") for use in node.parameters))
        for node in graph.nodes
    )
    assert torch.equal(described(graph), described(replace(graph, nodes=nodes)))
    assert torch.equal(described(graph), described(trace(nn.Sequential(resnet20()), EXAMPLE)))
    assert not torch.equal(described(graph), described(trace(resnet20(shortcut="B"), EXAMPLE)))
    assert not torch.equal(described(graph), describe(graph, 0.1, 0.0, classes=10))


def test_description_by_hand() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4)),
        *(nn.LayerNorm(30), nn.Flatten(), nn.Linear(3600, 5)),
    )
    parameters, values = 11, 8 * 27 + 2 * 8 + 4 * 8 + 4 + 2 * 4 + 2 * 30 + 10 * 3600 + 10
    norms = (4 * 1 / 3, 4 * 2 / 3, 0)  # of three layers with weights; no additions
    expected = [4 * 0.5, 4 * 0.25, parameters, values, 10, 4, *norms]
    told = describe(trace(model, EXAMPLE), 0.5, 0.25, classes=10)
    assert told.tolist() == pytest.approx([math.log2(1 + count) for count in expected], abs=1e-4)
    skip = described(trace(ResNet((1,), (8,)), EXAMPLE))
    assert skip[-1] == pytest.approx(math.log2(1 + 4 * 1 / 4)), "one addition, three convolutions and a head"


def test_references_are_never_the_networks_it_is_judged_by() -> None:
    references = set(specs_to_fit(5, judged_by=8))
    assert len(references) == 5 and all(spec.held_out() for spec in references)
    assert not references & set(unseen_specs(8))


@pytest.mark.full
def test_references_of_a_family_are_never_of_the_hundred_of_all() -> None:
    families = {name: WEIGHTS[name] for name in ("transformer",)}
    references = set(specs_to_fit(20, judged_by=2, families=families))
    assert len(references) == 20 and not references & set(unseen_specs(100))


def test_resnets_are_classical_and_never_the_reference_models() -> None:
    specs = list(resnet_specs(40))
    assert len(set(specs)) == 40 and specs == list(resnet_specs(40))
    assert all(len(spec.blocks) == 3 and max(spec.blocks) <= 10 for spec in specs)
    assert {spec.blocks for spec in specs}.isdisjoint({(3, 3, 3), (9, 9, 9)})
    assert {spec.widths[0] for spec in specs} == {8, 12, 16, 20, 24}


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("networks", ["one"], "measured.networks: expected a list of 2"),
        ("points", [[0.0]], "measured.points: expected 16 descriptions"),
        ("spread", [0.0], "measured.spread: expected positive"),
        ("accuracy", [1.5] * 16, "measured.accuracy: expected 16 shares"),
        ("length", math.nan, "measured.length: expected a positive number"),
        ("length", 1e-300, "measured.length: expected a positive number"),
        ("signal", 1e200, "measured.signal: expected a positive number"),
        ("noise", 1e-8, "measured.noise: expected at least"),
        ("images", 3, "measured.images: expected a text"),
    ],
)
def test_a_broken_record_is_named(record: dict[str, Any], entry: str, value: Any, message: str) -> None:
    MeasuredNetworks.check(record)
    with pytest.raises(ValueError, match=message):
        MeasuredNetworks.check(record | {entry: value})


def test_equal_networks_do_not_stop_it(record: dict[str, Any]) -> None:
    same = record | {"points": [record["points"][0]] * 16, "noise": 1e-3 * record["signal"]}
    MeasuredNetworks.check(same)
    assert 0 <= MeasuredNetworks(same)(torch.tensor(record["points"][0])).accuracy <= 1


@pytest.fixture
def knowing(tiny: Callable[[str], WeightGenerator], record: dict[str, Any]) -> WeightGenerator:
    # The networks of the record count as measured with this generator, whatever is new to it in ResNet-20.
    spread = [1.0, 1.0, *record["spread"][2:]]
    config = tiny("ghn").config | {"measured": record | {"least": 1e-3, "spread": spread}}
    return type(tiny("ghn"))(config)


def test_expect_reads_the_graph_alone(knowing: WeightGenerator) -> None:
    with torch.device("meta"):
        model = resnet20()
    told = geninit.expect(model, pretrained=knowing)
    assert isinstance(told, geninit.Expectation)
    assert told == geninit.expect(resnet20(), pretrained=knowing)
    assert told == geninit.expect(model, pretrained=knowing, graph=geninit.trace(resnet20(), EXAMPLE))
    assert str(told).startswith(f"{100 * told.accuracy:.0f} % (")
    assert told.caveat == "" and str(told).endswith("standard deviations away")
    shown = told._repr_html_()
    for text in (f"{100 * told.accuracy:.0f} %", told.images, told.source, told.nearest[0]):
        assert f"<td>{text}" in shown


def test_a_generator_that_was_not_measured_says_so(tiny: Callable[[str], WeightGenerator]) -> None:
    with pytest.raises(ValueError, match="ghn can't tell what to expect: its file has no measured networks"):
        geninit.expect(resnet20(), pretrained=tiny("ghn"))


def test_nothing_to_generate_is_nothing_to_expect(knowing: WeightGenerator) -> None:
    with pytest.raises(ValueError, match="Flatten has no parameter that ghn would generate.* no parameters"):
        geninit.expect(nn.Flatten(), pretrained=knowing)
    with pytest.raises(ValueError, match=r"nothing to expect: 59 x frozen"):
        geninit.expect(resnet20().requires_grad_(False), pretrained=knowing)


def test_too_little_to_expect_is_not_trusted(knowing: WeightGenerator) -> None:
    def trusting_from(least: float) -> WeightGenerator:
        return type(knowing)(knowing.config | {"measured": knowing.config["measured"] | {"least": least}})

    told = geninit.expect(resnet20(), pretrained=knowing)
    made = geninit.plan(resnet20(), pretrained=trusting_from(told.low - 0.001))
    assert made.generated and made.verdict is not None and made.verdict.trusted
    model = resnet20()
    before = copy.deepcopy(model.state_dict())
    warned = geninit.expect(resnet20(), pretrained=trusting_from(told.low + 0.001))
    assert warned[:3] == told[:3] and "ghn_ leaves the model as it is" in str(warned)
    words = f"expected accuracy starts at {100 * told.low:.1f} %, trusted from {100 * told.low + 0.1:.0f} %"
    with pytest.warns(geninit.GenInitWarning, match=words):
        geninit.ghn_(model, pretrained=trusting_from(told.low + 0.001))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model", [resnet20(), ResNet((2,), (200,))], ids=["inside", "outside"])
def test_the_distance_from_training_is_the_verdicts(knowing: WeightGenerator, model: ResNet) -> None:
    told, made = geninit.expect(model, pretrained=knowing), geninit.plan(model, pretrained=knowing)
    assert made.verdict is not None and told.from_training == made.verdict.distance
    assert f"distance from the training networks {made.verdict.distance:.2f}" in str(told)


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_the_number_of_classes_is_none_of_its_business(knowing: WeightGenerator, classes: int) -> None:
    """The head of other size is kept, whatever it is; what is generated is the body."""
    usual = geninit.expect(resnet20(), pretrained=knowing)
    other = geninit.expect(resnet20(classes), pretrained=knowing)
    assert other._replace(caveat="") == usual
    assert str(other).startswith("the classifier 'fc.weight' keeps its values (head of other size")


def test_outside_of_the_training_networks_chance_is_expected(knowing: WeightGenerator) -> None:
    model = ResNet((2,), (200,))
    knowing = type(knowing)(knowing.config | {"trained": knowing.config["trained"] | {"threshold": 0.02}})
    made = geninit.plan(model, pretrained=knowing, untrusted="generate")
    assert made.verdict is not None and not made.verdict.trusted
    told = geninit.expect(model, pretrained=knowing)
    point = describe(made.architecture, made.verdict.distance, 0.0, classes=10)
    measured = MeasuredNetworks(knowing.config["measured"])(point)
    assert told.accuracy == 0.1 < measured.accuracy
    assert (told.low, told.high) == (min(measured.low, 0.1 - LEAST_HALF), measured.high)
    assert str(told).startswith(
        'not trusted, ghn_ leaves the model as it is unless untrusted="generate" (distance '
    )


def test_what_can_not_all_be_generated_is_outside_too(knowing: WeightGenerator) -> None:
    model = resnet20()
    model.conv1 = nn.Conv2d(3, 16, 9, padding=4, bias=False)
    told = geninit.expect(model, pretrained=knowing)
    assert told.accuracy == 0.1 and "never trained on a 9x9 convolution" in told.caveat


def test_images_with_other_channels_are_named(knowing: WeightGenerator) -> None:
    model = resnet20()
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    told = geninit.expect(model, pretrained=knowing)
    assert "the model reads images of 1 channel, not 3 channels" in told.caveat


def test_images_of_other_size_are_named_if_they_were_given(knowing: WeightGenerator) -> None:
    told = geninit.expect(resnet20(), pretrained=knowing, example_inputs=torch.zeros(1, 3, 64, 48))
    assert told.caveat == "the model reads images of 3 x 64 x 48, not 3 x 32 x 32"
    assert geninit.expect(resnet20(), pretrained=knowing, example_inputs=EXAMPLE).caveat == ""


def test_frozen_parameters_are_named(knowing: WeightGenerator) -> None:
    model = resnet20()
    model.layer1.requires_grad_(False)
    told = geninit.expect(model, pretrained=knowing)
    assert told.caveat.startswith("18 parameters keep their values, the first is 'layer1.0.conv1.weight'")


def test_the_generator_that_was_asked_is_named() -> None:
    told = geninit.expect(resnet20(), pretrained="auto")
    assert told.source == geninit.plan(resnet20(), pretrained="auto").source
    assert f"before training by {told.source}" in str(told)
    assert geninit.expect(resnet20(), pretrained=geninit.load("ghn-cifar10")).source == "ghn-cifar10"


def test_a_large_distance_is_only_large(record: dict[str, Any]) -> None:
    told = MeasuredNetworks(record)(torch.tensor(record["points"][0]) + 1e3)
    assert str(told).endswith(", far away")


def test_nothing_is_expected_exactly(record: dict[str, Any]) -> None:
    """Not even of a network that was measured: a thousand images tell an accuracy to a point or two."""
    told = MeasuredNetworks(record)(torch.tensor(record["points"][5]))
    assert told.distance < 1e-6
    assert told.high - told.low >= 0.049
