"""Applied by transformers' own pass, a plan fills what a checkpoint lacks and keeps what it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geninit as geninit
from torch_geninit.generators.base import WeightGenerator
from torch_geninit.planning.plan import Plan
from torch_geninit.planning.prediction import Prediction

Generators = Callable[[str], WeightGenerator]
FLAG = "_is_hf_initialized"


class Twin(nn.Module):
    """A model with transformers' protocol: module by module, children first, without the marked ones."""

    def __init__(self, generator: WeightGenerator | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 7)
        self.generator = (generator,)  # no part of the model
        self.prediction: Prediction | None = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.norm(self.stem(x))).mean((2, 3)))
        return out

    def _init_weights(self, module: nn.Module) -> None:
        for p in module.parameters(recurse=False):
            if not getattr(p, FLAG, False):
                nn.init.constant_(p, 0.25)
        if self.generator[0] is not None:
            if self.prediction is None:
                self.prediction = geninit.plan(self, pretrained=self.generator[0]).predict()
            self.prediction.write_(module)

    def _initialize_weights(self, module: nn.Module) -> None:
        if not getattr(module, FLAG, False):
            self._init_weights(module)
            setattr(module, FLAG, True)

    def load(self, checkpoint: Mapping[str, Tensor]) -> Twin:
        """Replace parameters by loaded ones, which are marked, then initialise the others."""
        for name, value in checkpoint.items():
            path, _, leaf = name.rpartition(".")
            loaded = nn.Parameter(value.clone())
            setattr(loaded, FLAG, True)
            self.get_submodule(path).register_parameter(leaf, loaded)
        self.apply(self._initialize_weights)
        return self


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


CHECKPOINT = {
    "stem.weight": torch.full((8, 3, 3, 3), 2.0),
    "norm.weight": torch.full((8,), 3.0),
    "body.0.weight": torch.full((8, 8, 3, 3), 4.0),
    "body.0.bias": torch.full((8,), 5.0),
}


@pytest.fixture
def predicted(tiny: Generators) -> dict[str, Tensor]:
    return values(geninit.ghn_(Twin(), pretrained=tiny("ghn")))


class TestTwin:
    def test_a_pass_keeps_what_was_loaded_and_fills_the_rest(
        self, tiny: Generators, predicted: dict[str, Tensor]
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = Twin(tiny("ghn")).load(CHECKPOINT)
        for name, value in values(model).items():
            if name in CHECKPOINT:
                expected = CHECKPOINT[name]
            elif name.startswith("head"):  # seven classes: kept, by the model's own initialisation
                expected = torch.full_like(value, 0.25)
            else:
                expected = predicted[name]
            assert torch.equal(value, expected), name

    def test_a_parent_that_initialises_its_children_anew_leaves_what_was_written(
        self, tiny: Generators, predicted: dict[str, Tensor]
    ) -> None:
        class Eager(Twin):
            def _init_weights(self, module: nn.Module) -> None:
                super()._init_weights(module)
                if module is self:
                    for p in module.parameters():
                        if not getattr(p, FLAG, False):
                            nn.init.zeros_(p)

        model = Eager(tiny("ghn")).load({})
        assert torch.equal(model.stem.weight, predicted["stem.weight"])
        assert not model.head.weight.any()

    @pytest.mark.parametrize("by", ["plan", "prediction"])
    def test_after_the_pass_the_loaded_are_kept_aloud(self, tiny: Generators, by: str) -> None:
        model = Twin().load(CHECKPOINT)
        plan = geninit.plan(model, pretrained=tiny("ghn"))
        applied: Plan | Prediction = plan if by == "plan" else plan.predict()
        with pytest.warns(
            geninit.GenInitWarning, match=r"keeps 4 parameters of Twin.*'stem\.weight'; ghn_"
        ) as w:
            applied.write_(model)
        assert w[0].filename == __file__
        assert all(torch.equal(model.get_parameter(name), value) for name, value in CHECKPOINT.items())
        with pytest.warns(geninit.GenInitWarning) as w:
            model.apply(plan.predict().write_)
        assert len(w) == 1
        assert all(torch.equal(model.get_parameter(name), value) for name, value in CHECKPOINT.items())

    def test_everything_loaded(self, tiny: Generators) -> None:
        model = Twin()
        checkpoint = values(model)
        model.load(checkpoint)
        with pytest.warns(geninit.GenInitWarning, match="keeps 6 parameters") as w:
            geninit.plan(model, pretrained=tiny("ghn")).write_(model)
        assert w[0].filename == __file__
        assert all(torch.equal(p, checkpoint[name]) for name, p in model.named_parameters())

    def test_a_verb_overwrites_and_leaves_no_mark(
        self, tiny: Generators, predicted: dict[str, Tensor]
    ) -> None:
        model = Twin().load(CHECKPOINT)
        marks = {name: vars(p).copy() for name, p in model.named_parameters()}
        geninit.ghn_(model, pretrained=tiny("ghn"))
        assert torch.equal(model.stem.weight, predicted["stem.weight"])
        assert torch.equal(model.body[0].bias, predicted["body.0.bias"])
        assert {name: vars(p) for name, p in model.named_parameters()} == marks

    def test_what_was_written_can_be_written_again(self, tiny: Generators) -> None:
        model = Twin().load({})
        plan = geninit.plan(model, "noise_ghn", pretrained=tiny("noise-ghn"))
        plan.write_(model, seed=1)
        first = values(model)
        assert getattr(model.stem.weight, FLAG)
        plan.write_(model, seed=2)
        assert not torch.equal(model.stem.weight, first["stem.weight"])

    def test_other_models_get_no_mark(self, tiny: Generators) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3))
        geninit.plan(model, "vae", pretrained=tiny("vae")).write_(model, seed=0)
        assert not any(vars(p) for p in model.parameters())

    def test_norm_and_direction_are_kept_together(self, tiny: Generators) -> None:
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)))
        originals = model[0].parametrizations.weight  # type: ignore[union-attr]
        setattr(originals.original0, FLAG, True)  # type: ignore[union-attr]
        before = values(model)
        geninit.plan(model, "vae", pretrained=tiny("vae")).write_(model, seed=0)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    def test_reset_never_touches_loaded_weights(self, tiny: Generators) -> None:
        model = Twin().load({"head.bias": torch.full((7,), 9.0)})
        before = values(model)
        plan = geninit.plan(model, pretrained=tiny("ghn"))
        with pytest.raises(ValueError, match=r"'head\.bias' was loaded.*Linear, would destroy"):
            plan.write_(model, unfilled="reset")
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.full
class TestReal:
    """With transformers itself: from_pretrained of a small checkpoint that lacks some weights."""

    @staticmethod
    def save(model: Any, folder: Path, *lacking: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file, save_file

        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        tensors = {n: t for n, t in load_file(path).items() if not any(part in n for part in lacking)}
        save_file(tensors, path, metadata={"format": "pt"})
        return tensors

    @staticmethod
    def check(model: nn.Module, checkpoint: Mapping[str, Tensor], expected: nn.Module, plan: Plan) -> None:
        missing = {entry.name for entry in plan.generated} - checkpoint.keys()
        assert missing and len(plan.generated) > len(missing)
        for name, p in model.named_parameters():
            if name in checkpoint:
                assert torch.equal(p, checkpoint[name]), name
            elif name in missing:
                assert torch.equal(p, expected.get_parameter(name)), name
        for name, buffer in model.named_buffers():
            fresh = torch.ones_like(buffer) if name.endswith("running_var") else torch.zeros_like(buffer)
            assert torch.equal(buffer, checkpoint.get(name, fresh)), name

    def test_init_weights_of_an_own_model(self, tmp_path: Path, tiny: Generators) -> None:
        transformers = pytest.importorskip("transformers")

        class Own(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
            config_class = transformers.PretrainedConfig
            learned = False
            prediction: Prediction | None = None

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
                self.norm = nn.BatchNorm2d(8)
                self.head = nn.Linear(8, 7)
                self.post_init()

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.head(self.norm(self.body(x)).mean((2, 3)))
                return out

            def _init_weights(self, module: nn.Module) -> None:
                super()._init_weights(module)
                if self.learned:
                    if self.prediction is None:
                        self.prediction = geninit.plan(self, pretrained=tiny("ghn")).predict()
                    self.prediction.write_(module)

        plain = Own(transformers.PretrainedConfig())
        checkpoint = self.save(plain, tmp_path, "body.2", "norm", "head.bias")
        Own.learned = True
        model = Own.from_pretrained(tmp_path)
        plan = geninit.plan(plain, pretrained=tiny("ghn"))
        self.check(model, checkpoint, geninit.ghn_(plain, pretrained=tiny("ghn")), plan)
        assert not model.head.bias.any()

    def test_a_library_model_after_loading(self, tmp_path: Path, tiny: Generators) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
        )
        plain = transformers.ResNetForImageClassification(config)
        checkpoint = self.save(plain, tmp_path, "stages.1", "classifier")
        # The small generator was never trained on 7x7 kernels.
        options: dict[str, Any] = {"pretrained": tiny("ghn"), "exclude": "*embedder.embedder.convolution*"}
        model = transformers.ResNetForImageClassification.from_pretrained(tmp_path)
        plan = geninit.plan(model, **options)
        with pytest.warns(geninit.GenInitWarning, match="keeps 8 parameters .* loaded from a checkpoint"):
            plan.write_(model)
        self.check(model, checkpoint, geninit.ghn_(plain, **options), plan)
        # A verb is asked for explicitly: it writes to all.
        geninit.ghn_(model, **options)
        for entry in plan.generated:
            assert torch.equal(model.get_parameter(entry.name), plain.get_parameter(entry.name)), entry.name

    def test_a_fresh_model_has_no_marks_in_the_way(self, tiny: Generators) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        model = transformers.ResNetModel(config)
        before = values(model)
        plan = geninit.plan(model, "vae", pretrained=tiny("vae"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.apply(plan.predict(seed=0).write_)
        assert plan.generated
        assert all(not torch.equal(model.get_parameter(e.name), before[e.name]) for e in plan.generated)
