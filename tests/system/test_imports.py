"""Arrows between modules run one way; importing the package is cheap."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "torch_geninit"

# Layers from the bottom up; a module imports from its own layer or from below.
LAYERS = [
    {"_version", "_utils", "errors", "batchnorm", "graph.architecture", "graph.vocabulary"},
    {"graph"},
    {"generators"},
    {"parameters", "hub"},
    {"planning", "convert"},
    {"initializers"},
    {"accuracy"},
    {"__init__"},
    {"training.arguments", "training.metrics", "training.operators"},
    {"training.networks", "training.runs"},
    {"training.data"},
    {"training.loops"},
    {"training.evaluate"},
    {"training.release", "training.report"},
    {"training"},
]
# More than the layers say.
NEVER = {
    "_utils": {"errors", "batchnorm", "graph"},
    "batchnorm": {"_utils", "graph"},
    "parameters": {"hub"},
    "parameters.write": {"generators.base", "generators.entry"},
    "hub": {"parameters", "graph.tracer"},
    "hub.registry": {"graph"},
    "planning": {"hub", "convert"},
    "planning.plan": {"planning.build", "planning.auto"},
    "planning.prediction": {"generators", "planning.plan", "planning.build"},
    "convert": {"parameters", "planning"},
}
HEAVY = ("huggingface_hub", "torchvision", "numpy.testing", "matplotlib", "tqdm", "transformers", "timm")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def level(name: str) -> int:
    parts = name.split(".")
    for candidate in (".".join(parts[:length]) for length in range(len(parts), 0, -1)):
        for index, layer in enumerate(LAYERS):
            if candidate in layer:
                return index
    raise AssertionError(f"{name} has no layer; give it one in this test")


def within(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports at run time, wherever in the file."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # Of a room without a name of its own, only the modules that are named.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            own = {name.removeprefix("torch_geninit.") for name in inside} - modules().keys()
            names = [node.module, *inside] if own else inside
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import in {path}"
            continue
        found |= {name.removeprefix("torch_geninit.") for name in names if name.startswith("torch_geninit.")}
    return found & set(modules())


def test_arrows_run_one_way() -> None:
    for name, path in modules().items():
        for target in imported(path):
            assert level(target) <= level(name), f"{name} imports {target}, which is above it"


def test_no_module_of_training_imports_itself_through_others() -> None:
    arrows = {name: imported(path) for name, path in modules().items() if name.startswith("training")}
    for name in arrows:
        reached, ahead = set(), set(arrows[name])
        while ahead:
            reached |= ahead
            ahead = {target for module in ahead for target in arrows.get(module, ())} - reached
        assert name not in reached, f"{name} is in a circle of imports"


def test_nothing_but_training_imports_training() -> None:
    for name, path in modules().items():
        if not name.startswith("training"):
            assert not any(target.startswith("training") for target in imported(path)), name


@pytest.mark.parametrize("name", NEVER)
def test_forbidden_arrows(name: str) -> None:
    for module, path in modules().items():
        if within(module, [name]):
            assert not [target for target in imported(path) if within(target, NEVER[name])], module


def test_the_face_has_no_logic_and_exports_what_it_imports() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
    names = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    import torch_geninit

    assert set(torch_geninit.__all__) == names


def loaded_after(script: str) -> list[str]:
    code = textwrap.dedent(script) + "\nimport json, sys; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_importing_costs_torch_and_safetensors_and_little_more() -> None:
    torch_alone = set(loaded_after("import torch, safetensors.torch"))
    loaded = [m for m in loaded_after("import torch_geninit") if m not in torch_alone]
    assert not [m for m in loaded if m.startswith((*HEAVY, "torch.", "torch_geninit.training"))]


def test_a_real_call_on_a_local_file_loads_no_training_and_no_hub_client(tmp_path: Path) -> None:
    from tests.conftest import tiny_generator
    from torch_geninit.hub.file import write

    for kind in ("vae", "noise-ghn"):
        write(tiny_generator(kind), tmp_path / f"{kind}.safetensors")
    loaded = loaded_after(
        f"""
        import torch, torch_geninit as geninit
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10))
        geninit.vae_(model, pretrained={str(tmp_path / "vae.safetensors")!r})
        geninit.ghn_(model, pretrained={str(tmp_path / "noise-ghn.safetensors")!r})
        geninit.noise_ghn_(model, 1, pretrained={str(tmp_path / "noise-ghn.safetensors")!r})
        geninit.recalibrate_bn_(model, [torch.randn(2, 3, 8, 8)])
        """
    )
    assert "torch_geninit.generators.ghn.model" in loaded
    assert not [
        m for m in loaded if m.startswith(("huggingface_hub", "torch_geninit.training", "torchvision"))
    ]
