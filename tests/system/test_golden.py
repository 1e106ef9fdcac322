"""Numbers that stay: what the shipped generators make, what the tracer sees, and equal bits on one build."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tests.support import golden_values as golden
from tests.support import processes
from torch_geninit.hub import manifest
from torch_geninit.training.networks.resnet import resnet20

PAIRS = golden.pairs()
STEMS = [f"{verb}-{name}" for verb, name in PAIRS]
MOVED = f"If that was meant: `{golden.COMMAND}`, and say what moved and why in CHANGELOG.md, Numerics"

pairs = pytest.mark.parametrize(("verb", "generator"), PAIRS, ids=STEMS)


def first(generator: str) -> nn.Module:
    """Build the first of the networks that a generator is tried on."""
    return next(iter(golden.networks(generator).values()))()


class TestValues:
    @pairs
    def test_shipped_generators_make_what_they_made(self, verb: str, generator: str) -> None:
        stem = f"{verb}-{generator}"
        expected = golden.read(stem)
        assert expected["sha256"] == golden.sha256(generator), f"{stem} is of another file. {MOVED}"
        found = golden.values(verb, generator)
        for network in golden.networks(generator):
            assert found[network].keys() == expected[network].keys(), f"{stem}, {network}. {MOVED}"
            for name, numbers in found[network].items():
                assert golden.close(numbers, expected[network][name]), f"{stem}, {network}, {name}. {MOVED}"

    def test_every_shipped_generator_has_golden_values_and_nothing_else_has(self) -> None:
        shipped = {r.name for r in manifest.read() if (manifest.SHIPPED / r.filename).exists()}
        assert {name for _, name in PAIRS} == shipped
        stems = {path.stem for path in golden.GOLDEN.glob("*.json") if not path.stem.startswith("graphs-")}
        assert stems == set(STEMS), MOVED

    @pytest.mark.parametrize(("number", "moved"), [(0, 3e-4), (1, 3e-4), (2, 3e-4), (4, -3e-4)])
    def test_the_tolerance_notices_a_change_of_a_thousandth(self, number: int, moved: float) -> None:
        numbers = [0.01, 1.0, -0.5, 0.2, 1.5]
        other = list(numbers)
        other[number] += moved
        assert golden.close(numbers, [n * (1 + 2e-5) for n in numbers])
        assert not golden.close(numbers, other)


class TestGraphs:
    def test_there_are_ten(self) -> None:
        assert len(golden.GRAPHS) == 10 == len(set(golden.read(golden.graphs_stem()).values()))

    @pytest.mark.parametrize("name", golden.GRAPHS)
    def test_the_tracer_sees_what_it_saw(self, name: str) -> None:
        pytest.importorskip("torchvision")
        found = golden.fingerprint(name)
        assert found == golden.read(golden.graphs_stem())[name], (
            f"another graph of {name}: generators were trained on the old one, so this is a new version of "
            f"the vocabulary. {MOVED}"
        )


class TestBits:
    @pairs
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_types_are_the_rounded_float32(self, verb: str, generator: str, dtype: torch.dtype) -> None:
        self.compare(verb, generator, first(generator).to(dtype))

    @pytest.mark.gpu
    @pairs
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_cuda_has_the_bits_of_the_cpu(self, verb: str, generator: str, dtype: torch.dtype) -> None:
        self.compare(verb, generator, first(generator).to("cuda", dtype))

    @pytest.mark.gpu
    def test_a_model_on_two_devices(self) -> None:
        model = resnet20()
        model.layer2.to("cuda", torch.bfloat16)
        self.compare("ghn", "ghn-cifar10", model)

    @staticmethod
    def compare(verb: str, generator: str, model: nn.Module) -> None:
        plan, filled = golden.made(verb, generator, next(iter(golden.networks(generator))))
        plain = dict(filled.named_parameters())
        other = dict(golden.apply(verb, generator, model).named_parameters())
        assert plan.generated
        for entry in plan.generated:
            rounded: Tensor = plain[entry.name].detach().to(other[entry.name].dtype)
            assert torch.equal(other[entry.name].detach().cpu(), rounded), entry.name

    @pytest.mark.full
    def test_another_process_with_other_hashes_and_threads_makes_the_same_bits(self) -> None:
        script = """
            import hashlib
            from tests.support import golden_values as golden
            for verb, name in golden.pairs():
                make = next(iter(golden.networks(name).values()))
                model = golden.apply(verb, name, make())
                plan = golden.geninit.plan(model, verb, pretrained=name, **golden.images(name))
                for entry in plan.generated:
                    parameter = model.get_parameter(entry.name).detach()
                    print(entry.name, hashlib.sha256(parameter.numpy().tobytes()).hexdigest())
        """
        outputs = []
        for number in ("1", "3"):
            done = subprocess.run(
                [sys.executable, "-c", "\n".join(line[12:] for line in script.splitlines())],
                env=processes.environment(PYTHONHASHSEED=number, OMP_NUM_THREADS=number),
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            )
            outputs.append(done.stdout)
        assert outputs[0] == outputs[1] and outputs[0].count("\n") > 100
