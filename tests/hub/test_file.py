"""Generator files: what was written comes back, and what contradicts itself is refused by name."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.support.generator_files import raw, refused, resident
from tests.support.toy_generator import Toy, config, toy
from torch_geninit.errors import GeneratorFileError
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.generators.probe import Probe
from torch_geninit.hub import file, skeleton

pytestmark = pytest.mark.usefixtures("toy_kind")


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
    def test_values_config_and_manners(self, path: Path, dtype: torch.dtype) -> None:
        written = toy()
        file.write(written, path, dtype)
        generator = file.read(path)
        assert type(generator) is Toy
        assert generator.config == written.config
        assert not generator.training
        for name, tensor in generator.state_dict().items():
            expected = written.state_dict()[name]
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected.to(dtype).to(expected.dtype))
        assert not any(parameter.requires_grad for parameter in generator.parameters())

    def test_another_reader_sees_the_same(self, path: Path) -> None:
        file.write(toy(), path)
        with safe_open(path, "pt") as reader:
            assert json.loads(reader.metadata()["torch_geninit"])["sizes"] == {"width": 4, "depth": 2}
            assert reader.get_tensor("layers.0.weight").dtype == torch.float16
            assert torch.equal(reader.get_tensor("layers.0.weight").float(), toy().layers[0].weight)

    def test_bytes_depend_on_nothing_else(self, tmp_path: Path) -> None:
        shuffled = toy()
        shuffled.config = dict(reversed(shuffled.config.items()))
        for name, generator in (("a", toy()), ("b", shuffled)):
            file.write(generator, tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_nothing_but_the_generator_changes(self, path: Path) -> None:
        file.write(toy(), path)
        states = torch.get_rng_state(), random.getstate()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.inference_mode():
                generator = file.read(path)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert all(p.dtype == torch.float32 and not p.is_inference() for p in generator.parameters())

    def test_memory_holds_the_values_once(self, path: Path) -> None:
        """Beside one tensor, and nothing of the file."""
        file.write(toy(sizes={"width": 1024, "depth": 24}), path, torch.float32)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pytest.skip("no peak of memory is measured here")
        before = resident("VmRSS")
        assert file.read(path).config["sizes"]["depth"] == 24
        assert resident("VmHWM") - before < 1.3 * path.stat().st_size

    @pytest.mark.parametrize("byte_order", ["little", "big"])
    def test_values_are_little_endian_in_the_file(
        self, path: Path, byte_order: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.write(toy(), path)
        monkeypatch.setattr("sys.byteorder", byte_order)
        values = file.read(path).state_dict()["steps"].view(1).view(torch.uint8)
        expected = [7, *[0] * 7]
        assert values.tolist() == (expected if byte_order == "little" else expected[::-1])

    @pytest.mark.parametrize("change", [-1, 1])
    def test_file_that_changes_while_it_is_read(
        self, path: Path, change: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compare = file.compare

        def late(*arguments: Any) -> None:
            compare(*arguments)
            os.truncate(path, path.stat().st_size + change)

        file.write(toy(sizes={"width": 128, "depth": 2}), path)
        monkeypatch.setattr(file, "compare", late)
        with pytest.raises(GeneratorFileError, match="changed while it was read"):
            file.read(path)

    def test_a_failed_write_leaves_the_old_file(self, path: Path) -> None:
        file.write(toy(), path)
        before = path.read_bytes()
        huge = toy()
        with torch.no_grad():
            huge.layers[1].bias[0] = 1e6
        with pytest.raises(ValueError, match=r"layers\.1\.bias.*float16.*float32"):
            file.write(huge, path)
        incomplete = toy()
        del incomplete.config["licence"]
        with pytest.raises(ValueError, match="licence"):
            file.write(incomplete, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_config_alone(self, path: Path) -> None:
        file.write(toy(), path)
        assert file.read_config(path) == config()


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"kind": "diffusion"}, "one of vae, ghn, noise-ghn"),
            ({"kind": ["ghn"]}, "kind"),
            ({"format_version": 2}, "upgrade torch-geninit"),
            ({"format_version": 0}, "format_version"),
            ({"format_version": "1"}, "format_version"),
            ({"format_version": True}, "format_version"),
            ({"vocabulary": {"version": 10**6, "graphs": {}}}, "upgrade torch-geninit"),
            ({"vocabulary": {"version": 0, "graphs": {}}}, "vocabulary.version"),
            ({"vocabulary": {"version": 1, "graphs": {"a": "xyz"}}}, "vocabulary.graphs"),
            ({"vocabulary": {"version": 1}}, "vocabulary"),
            ({"vocabulary": 1}, "vocabulary"),
            ({"sizes": [4, 2]}, "sizes"),
            ({"sizes": {"width": 2**21, "depth": 2}}, "sizes.width"),
            ({"sizes": {"width": 4, "depth": list(range(20_000))}}, "at most 10000 values"),
            ({"sizes": {"width": 4}}, "KeyError"),
            ({"sizes": {"width": "4", "depth": 2}}, "TypeError"),
            ({"sizes": {"width": -4, "depth": 2}}, "RuntimeError"),
            ({"trained": None}, "trained"),
            ({"trained": {"epochs": 0}}, "trained.epochs"),
            ({"input": {"size": [3, 32, 32], "mean": [0.5], "std": [0.0]}}, "input.std"),
            ({"input": {"size": [3, 32, 32], "mean": [0.5, 0.5], "std": [1.0]}}, "input.std"),
            ({"input": {"size": [], "mean": [0.5], "std": [1]}}, "input.size"),
            ({"input": {"size": [3, 32, 32]}}, "input"),
            ({"classes": []}, "classes"),
            ({"classes": 10}, "classes"),
            ({"classes": ["cat", "cat"]}, "classes"),
            ({"licence": ""}, "licence"),
        ],
    )
    def test_refused(self, path: Path, changes: dict[str, Any], part: str) -> None:
        refused(path, raw(config(**changes)), part)

    @pytest.mark.parametrize("entry", sorted(config()))
    def test_missing_entry_is_named(self, path: Path, entry: str) -> None:
        refused(path, raw({key: value for key, value in config().items() if key != entry}), "lacks", entry)

    @pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"kind":"ghn","kind":"vae"}', "[" * 100_000])
    def test_not_an_object(self, path: Path, text: str) -> None:
        refused(path, raw(text))

    def test_class_without_a_check_is_fine(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(Toy, "check_config")
        path.write_bytes(raw(config(trained={"epochs": 0})))
        assert isinstance(file.read(path), Toy)


class TestTensors:
    def test_missing_unexpected_and_misshapen(self, path: Path) -> None:
        tensors = toy().state_dict()
        del tensors["layers.0.bias"]
        tensors["layers.9.bias"] = torch.zeros(4)
        tensors["layers.1.weight"] = torch.zeros(4, 5)
        refused(
            path,
            raw(tensors=tensors),
            "missing tensor 'layers.0.bias'",
            "unexpected tensor 'layers.9.bias'",
            "'layers.1.weight': expected shape (4, 4), got (4, 5)",
        )

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("layers.0.bias", torch.int32), ("layers.0.bias", torch.float64), ("steps", torch.int32)],
    )
    def test_wrong_dtype(self, path: Path, name: str, dtype: torch.dtype) -> None:
        tensors = toy().state_dict()
        tensors[name] = tensors[name].to(dtype)
        refused(path, raw(tensors=tensors), f"{name!r}: expected dtype")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, path: Path, value: float) -> None:
        tensors = toy().state_dict()
        tensors["layers.1.bias"] = torch.tensor([0.0, value, 0.0, 0.0], dtype=torch.float16)
        refused(path, raw(tensors=tensors), "'layers.1.bias' holds NaN or infinite")

    def test_config_that_lies_about_sizes_builds_nothing(self, path: Path) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # A terabyte of parameters, were they allocated.
        refused(path, raw(config(sizes={"width": 2**19, "depth": 2})), "expected shape (524288, 524288)")
        start = time.process_time()
        refused(
            path, raw(config(sizes={"width": 1, "depth": 2**20})), "far more parameters than the file holds"
        )
        assert time.process_time() - start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024

    def test_wherever_the_outline_stops_autograd_stays_on(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Initialisers switch it off and on through the very mode that counts the calls."""

        def normed(self: Toy, config: dict[str, Any]) -> None:
            WeightGenerator.__init__(self, config)
            self.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(2))

        outline = skeleton._Outline
        monkeypatch.setattr(Toy, "__init__", normed)
        stopped = []
        for calls in range(60):
            monkeypatch.setattr(skeleton, "_Outline", lambda _, calls=calls: outline(calls))
            try:
                skeleton.build(path, config(), 1)
            except file.GeneratorFileError:
                stopped.append(calls)
            enabled = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
            assert enabled, calls
        assert 10 < len(stopped) < 60

    def test_a_class_whose_tensors_no_file_restores_is_named(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def build(self: Toy, config: dict[str, Any]) -> None:
            WeightGenerator.__init__(self, config)
            self.layer = nn.Linear(2, 2)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

        monkeypatch.setattr(Toy, "__init__", build)
        path.write_bytes(raw(tensors={"layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2)}))
        with pytest.raises(TypeError, match="Toy holds a tensor.*persistent"):
            file.read(path)


class TestProbe:
    images = torch.arange(32 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(32, 3, 32, 32)
    labels = torch.arange(32) % 2

    def content(self, text: Any = "pictures", **tensors: torch.Tensor) -> bytes:
        probe = {"probe.images": self.images, "probe.labels": self.labels}
        probe |= {f"probe.{name}": tensor for name, tensor in tensors.items()}
        return raw(config() if text is None else config(probe=text), {**toy().state_dict(), **probe})

    def test_comes_back_beside_the_state_dict(self, path: Path) -> None:
        written = toy(probe="pictures")
        written.probe = Probe(self.images, self.labels)
        file.write(written, path)
        read = file.read(path)
        assert torch.equal(read.probe.images, self.images)
        assert torch.equal(read.probe.labels, self.labels)
        assert read.state_dict().keys() == toy().state_dict().keys()
        assert file.outline(path).probe is None

    def test_a_file_without(self, path: Path) -> None:
        file.write(toy(), path)
        assert file.read(path).probe is None

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"text": None}, "the config's probe"),
            ({"text": 3}, "a text of a line"),
            ({"images": images.float()}, "expected uint8 images of 3 x 32 x 32"),
            ({"images": images[:, :, :16].contiguous()}, "expected uint8 images of 3 x 32 x 32"),
            ({"images": images[:31].contiguous()}, "expected 32 to 4096 images"),
            ({"labels": labels[:31].contiguous()}, "expected int64 of shape (32,)"),
            ({"labels": labels.int()}, "expected int64 of shape (32,)"),
            ({"labels": labels + 1}, "expected classes from 0 to 1"),
            ({"labels": labels - 1}, "expected classes from 0 to 1"),
            ({"labels": labels.sort().values}, "each class once before any comes again"),
            ({"names": labels + 0}, "expected probe.images and probe.labels"),
        ],
    )
    def test_refused(self, path: Path, told: dict[str, Any], expected: str) -> None:
        refused(path, self.content(**told), expected)

    def test_without_words_or_without_images(self, path: Path) -> None:
        refused(path, raw(config(probe="pictures")), "the config's probe")
        with pytest.raises(ValueError, match="the config's probe"):
            file.write(toy(probe="pictures"), path)

    def test_classes_of_its_own(self, path: Path) -> None:
        written = toy(probe="pictures", probe_classes=["a", "b", "c"])
        written.probe = Probe(self.images, torch.arange(32) % 3, ("a", "b", "c"))
        file.write(written, path)
        read = file.read(path)
        assert read.probe.classes == ("a", "b", "c") and read.probe.first(9).classes == read.probe.classes
        written.probe = Probe(self.images, self.labels)
        with pytest.raises(ValueError, match="the config's probe_classes"):
            file.write(written, path)

    @pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", 3], "ab", 7, None])
    def test_classes_of_its_own_are_different_names(self, path: Path, names: Any) -> None:
        probe = {"probe.images": self.images, "probe.labels": self.labels}
        content = raw(config(probe="pictures", probe_classes=names), {**toy().state_dict(), **probe})
        refused(path, content, "the config's probe_classes")

    def test_a_label_beyond_the_classes_of_its_own(self, path: Path) -> None:
        probe = {"probe.images": self.images, "probe.labels": torch.arange(32) % 3}
        content = raw(config(probe="pictures", probe_classes=["a", "b"]), {**toy().state_dict(), **probe})
        refused(path, content, "expected classes from 0 to 1")

    def test_classes_without_a_probe(self, path: Path) -> None:
        refused(path, raw(config(probe_classes=["a", "b"])), "the config's probe_classes")

    def test_no_larger_than_a_cap(self, path: Path) -> None:
        many = torch.zeros(4097, 3, 32, 32, dtype=torch.uint8)
        refused(path, self.content(images=many, labels=torch.arange(4097) % 2), "32 to 4096 images")
