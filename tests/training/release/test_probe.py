"""The probe: what is drawn, and a shipped file that gets one."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.exported import exported
from tests.support.toy_generator import toy
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.hub import file, manifest
from torch_geninit.training.data.images import Split, load
from torch_geninit.training.release import model_card, probe, reexport

CLASSES = ("a", "b", "c")


def split(count: int = 300, size: int = 4) -> Split:
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator())
    return Split(images, torch.arange(count) % 3, (0.5,) * 3, (0.2,) * 3, CLASSES)


class TestDraw:
    def test_as_many_of_each_class_in_turns(self) -> None:
        drawn = probe.draw(split())
        assert len(drawn.labels) == 159, "the nearest to 160 that three classes have equally often"
        for turn in drawn.labels.view(-1, 3):
            assert sorted(turn.tolist()) == [0, 1, 2]
        assert drawn.labels[:9].tolist() != [0, 1, 2] * 3, "in an order that tells nothing"

    def test_images_with_their_own_labels(self) -> None:
        train = split()
        drawn = probe.draw(train, 32)
        places = [int((train.images == image).flatten(1).all(1).nonzero()) for image in drawn.images]
        assert len(set(places)) == 32
        assert torch.equal(train.labels[places], drawn.labels)

    def test_goes_by_the_seed_alone(self) -> None:
        state = torch.get_rng_state()
        first, again, other = probe.draw(split()), probe.draw(split()), probe.draw(split(), seed=1)
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)
        assert torch.equal(torch.get_rng_state(), state)

    def test_many_classes_have_two_images_each(self) -> None:
        names = tuple(map(str, range(100)))
        many = Split(torch.zeros(400, 3, 4, 4, dtype=torch.uint8), torch.arange(400) % 100, (), (), names)
        assert len(probe.draw(many).labels) == 200

    def test_too_few_images(self) -> None:
        with pytest.raises(ValueError, match="51 of each of 3 classes: '.' has 50 training images"):
            probe.draw(split(150), 160)


class TestAdd:
    @staticmethod
    def generator(size: int = 4) -> WeightGenerator:
        return toy(
            classes=["cat", "dog"], input={"size": [3, size, size], "mean": [0.5] * 3, "std": [0.2] * 3}
        )

    def test_other_images_bring_their_classes(self, tmp_path: Path) -> None:
        made = self.generator()
        probe.add(made, split(), 33, source="three kinds of scenes")
        file.write(made, tmp_path / "it.safetensors")
        read = file.read(tmp_path / "it.safetensors")
        assert read.probe is not None and read.probe.classes == CLASSES
        assert read.config["probe"] == "33 images of three kinds of scenes, drawn with seed 0"

    def test_training_images_again(self) -> None:
        made = self.generator()
        probe.add(made, split(), 33, source="scenes")
        two = Split(split().images, torch.arange(300) % 2, (), (), ("cat", "dog"))
        probe.add(made, two, 32)
        assert made.probe is not None and made.probe.classes == ()
        assert "probe_classes" not in made.config

    def test_other_images_need_a_word(self) -> None:
        with pytest.raises(ValueError, match="(?s)expected classes: .*cat.*Say in words what the images are"):
            probe.add(self.generator(), split(), 33)

    def test_of_the_generators_size(self) -> None:
        with pytest.raises(ValueError, match=r"size:\n  expected: \[3, 8, 8\]\n  got: \[3, 4, 4\]"):
            probe.add(self.generator(8), split(), 33, source="scenes")


class TestReexport:
    def test_same_weights_with_a_probe(self, house: Path, tmp_path: Path) -> None:
        before = exported()
        weights = file.read(house / "pretrained" / before.filename).state_dict()
        train = Split(split(size=32).images, torch.arange(300) % 2, (0.5,) * 3, (0.2,) * 3, ("cat", "dog"))
        header = {"classes": '["cat", "dog"]', "mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]"}
        save_file({"train.images": train.images, "train.labels": train.labels}, tmp_path / "data", header)
        parser = ArgumentParser()
        reexport.add_arguments(parser)
        for images in ("40", "32"):
            reexport.main(parser.parse_args(["toy", "--data", str(tmp_path / "data"), "--images", images]))
        (after,) = manifest.read()
        assert after.numbers == before.numbers
        assert after.sha256 != before.sha256
        read = file.read(house / "pretrained" / after.filename)
        assert read.probe is not None
        assert torch.equal(read.probe.images, probe.draw(load(tmp_path / "data", "train"), 32).images)
        assert {name: tensor.tolist() for name, tensor in read.state_dict().items()} == {
            name: tensor.tolist() for name, tensor in weights.items()
        }
        assert (
            after.training_data == "none; the file holds 32 images of the training split, drawn with seed 0"
        )
        assert after.training_data in model_card.render(after)

    def test_images_of_another_data_set(self, house: Path) -> None:
        exported()
        generator = file.read(house / "pretrained" / "toy.safetensors")
        with pytest.raises(ValueError, match="expected classes: .*cat.*\n  got: .*'a'"):
            probe.add(generator, split())
        assert generator.probe is None
