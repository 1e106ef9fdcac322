"""What is expected of a network before training: what its generator's probe tells."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torch_geninit as geninit
from tests.support.probes import with_other_classes, with_probe
from tests.support.resnets import resnet8
from torch_geninit.generators.base import WeightGenerator


@pytest.fixture
def knowing(ghn: WeightGenerator) -> WeightGenerator:
    """A hypernetwork with a probe; the normalisation of its images is not that of others."""
    return with_probe(ghn, images=40)


def test_the_right_answers_of_the_filled_network_are_counted(knowing: WeightGenerator) -> None:
    model = resnet8()
    expected = geninit.expect(model, pretrained=knowing)
    with pytest.warns(geninit.GenInitWarning, match="as asked"):
        geninit.ghn_(model, pretrained=knowing, untrusted="generate", unfilled="error")
    assert knowing.probe is not None
    images, record = knowing.probe.images / 255, knowing.config["input"]
    mean, std = (torch.tensor(record[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        answers = model.train()((images - mean) / std).argmax(1)
    assert expected.accuracy == int((answers == knowing.probe.labels).sum()) / 40
    assert expected.low < expected.accuracy < expected.high
    assert (expected.images, expected.size) == (40, (3, 32, 32))
    assert (list(expected.mean), list(expected.std)) == (record["mean"], record["std"])


def test_it_prints(knowing: WeightGenerator) -> None:
    expected = geninit.expect(resnet8(), pretrained=knowing)
    assert "ghn_ leaves the model as it is" in str(expected), "a random generator"
    shown = expected._repr_html_()
    for text in (
        f"{100 * expected.accuracy:.0f} %",
        "40 of 3 x 32 x 32",
        expected.source,
        "pixels from 0 to 1",
    ):
        assert f"<td>{text}" in shown or f">{text}" in shown


def test_of_other_classes_the_class_means_tell(knowing: WeightGenerator) -> None:
    expected = geninit.expect(resnet8(), pretrained=with_other_classes(knowing))
    assert expected.by == "nearest class mean" and expected.usual is not None
    assert 0 < expected.accuracy < 1 and 0 < expected.usual < 1
    text = f"by the nearest class mean of the features, {100 * expected.usual:.0f} % from He initialisation"
    assert text in str(expected) and text in expected._repr_html_()


def test_a_generator_without_probe_says_so(ghn: WeightGenerator) -> None:
    with pytest.raises(ValueError, match="ghn can't tell what to expect of ResNet: .* has no probe"):
        geninit.expect(resnet8(), pretrained=ghn)


def test_nothing_to_generate_is_nothing_to_expect(knowing: WeightGenerator) -> None:
    with pytest.raises(ValueError, match="Flatten has no parameter that ghn would generate.* no parameters"):
        geninit.expect(nn.Flatten(), pretrained=knowing)
    with pytest.raises(ValueError, match=r"nothing to expect: 23 x frozen"):
        geninit.expect(resnet8().requires_grad_(False), pretrained=knowing)


@pytest.mark.parametrize("classes", [2, 100])
def test_the_classifier_of_other_classes_is_replaced(knowing: WeightGenerator, classes: int) -> None:
    """The head of other size is kept, whatever it is; what is measured has the generator's own."""
    usual = geninit.expect(resnet8(), pretrained=knowing)
    model = resnet8(classes)
    before = copy.deepcopy(model.state_dict())
    other = geninit.expect(model, pretrained=knowing)
    assert other[:5] == usual[:5]
    assert "the classifier 'fc.weight' keeps its values (head of other size" in str(other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_guess_of_another_size_is_named(knowing: WeightGenerator) -> None:
    model = resnet8()
    assert "guessed" not in geninit.expect(model, pretrained=knowing).caveat
    model.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)  # as if it were for larger images
    expected = geninit.expect(model, pretrained=knowing)
    assert expected.size == (3, 224, 224) and "inputs guessed: " in expected.caveat


def test_frozen_parameters_are_named(knowing: WeightGenerator) -> None:
    model = resnet8()
    model.layer1.requires_grad_(False)
    expected = geninit.expect(model, pretrained=knowing)
    assert "6 parameters keep their values, the first is 'layer1.0.conv1.weight'" in expected.caveat
