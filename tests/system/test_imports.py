"""Imports run down the floors and in no circle; no function hides a module; importing is cheap."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[2] / "torch_geninit"

# Ground first; a module imports from its own floor or from below.
FLOORS = [
    {"_version", "_utils", "errors", "batchnorm"},
    {"graph"},
    {"generators"},
    {"parameters", "hub"},
    {"planning", "convert"},
    {"initializers"},
    {"accuracy"},
    {"__init__"},
    {"training.arguments", "training.metrics", "training.operators"},
    {"training.networks", "training.runs"},
    {"training.data", "training.controls"},
    {"training.loops"},
    {"training.evaluate"},
    {"training.release", "training.report"},
    {"training"},
]
# More than the floors say.
NEVER = {
    "_utils": {"errors", "batchnorm"},
    "parameters": {"hub"},
    "parameters.write": {"generators.base", "generators.entry"},
    "hub": {"parameters", "graph.tracer"},
    "hub.registry": {"graph"},
    "planning": {"convert"},
    "planning.auto": {"hub"},
    "planning.build": {"hub"},
    "planning.plan": {"hub", "planning.build", "planning.auto"},
    "convert": {"parameters", "planning"},
}
HEAVY = ("huggingface_hub", "torchvision", "numpy.testing", "matplotlib", "tqdm", "transformers", "timm")


@cache
def modules() -> dict[str, Path]:
    """Every module and package below the top, by its name there; the top itself is ``__init__``."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def floor(name: str) -> int:
    parts = name.split(".")
    for place in (".".join(parts[:length]) for length in range(len(parts), 0, -1)):
        for index, rooms in enumerate(FLOORS):
            if place in rooms:
                return index
    raise AssertionError(f"{name} is on no floor; give it one in this test")


def within(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


@cache
def imported(name: str) -> frozenset[str]:
    """Modules of the package that one imports, wherever in the file, those for types alone among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in {name}"
            assert node.module
            places = [f"{node.module}.{alias.name}" for alias in node.names]
            # What is taken out of a package is a module of it, or a name that the package itself has.
            found |= {place if _known(place) else node.module for place in places}
    return frozenset(_short(place) for place in found if _known(place))


def _known(place: str) -> bool:
    return place.partition(".")[0] == PACKAGE.name and _short(place) in modules()


def _short(place: str) -> str:
    return place.removeprefix(PACKAGE.name).removeprefix(".") or "__init__"


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_arrow_up(name: str) -> None:
    above = [target for target in imported(name) if floor(target) > floor(name)]
    assert not above, f"{name} imports {above} from a floor above"


def test_no_circle() -> None:
    try:
        TopologicalSorter({name: imported(name) for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_imports_for_types_alone_are_read() -> None:
    hidden = [
        (name, target)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("torch_geninit.")
        for target in [(child.module or "").removeprefix("torch_geninit.")]
    ]
    assert all(any(within(found, [target]) for found in imported(name)) for name, target in hidden)
    assert "generators.base" in imported("hub.registry")


@pytest.mark.parametrize("name", NEVER)
def test_forbidden_arrows(name: str) -> None:
    for module in modules():
        if within(module, [name]):
            assert not [target for target in imported(module) if within(target, NEVER[name])], module


def test_no_public_name_hides_a_module() -> None:
    import torch_geninit

    for name in modules():
        if name != "__init__" and not name.endswith("__main__"):
            importlib.import_module(f"torch_geninit.{name}")
            found: object = torch_geninit
            for part in name.split("."):
                found = getattr(found, part)
            assert isinstance(found, ModuleType), f"import torch_geninit.{name} gives {found!r}"
    rooms = {name.split(".")[0] for name in modules()}
    assert not rooms & set(torch_geninit.__all__)


def test_the_face_has_no_logic_and_exports_what_it_imports() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
    names = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    import torch_geninit

    assert set(torch_geninit.__all__) == names


def loaded_by(script: str, before: str = "import sys") -> list[str]:
    """Return the modules that ``script`` adds to those of ``before``, in one new process."""
    lines = [
        f"{before}; import json, sys; known = set(sys.modules)",
        textwrap.dedent(script),
        "sys.stdout.write(json.dumps(sorted(set(sys.modules) - known)))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_importing_costs_torch_and_safetensors_and_little_more() -> None:
    loaded = loaded_by("import torch_geninit", before="import torch, safetensors.torch")
    assert "torch_geninit.initializers" in loaded
    assert not [m for m in loaded if m.startswith((*HEAVY, "torch.", "torch_geninit.training"))]


def test_a_real_call_on_a_local_file_loads_no_training_and_no_hub_client(tmp_path: Path) -> None:
    from tests.conftest import tiny_generator
    from torch_geninit.hub.file import write

    for kind in ("vae", "noise-ghn"):
        write(tiny_generator(kind), tmp_path / f"{kind}.safetensors")
    loaded = loaded_by(
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


def test_the_first_call_imports_neither_the_compiler_nor_sympy() -> None:
    """They take ten times as long as the call; a single shape that torch computes in Python imports both."""
    slow = ("torch._dynamo", "torch._inductor", "sympy", "triton")
    loaded = loaded_by(
        """
        import torch, torch_geninit as geninit
        from torch import nn
        from torch_geninit.training.networks.resnet import ResNet

        def network():
            return ResNet((1, 1, 1), (16, 32, 64))

        image = torch.empty(1, 3, 32, 32, device="meta")
        block = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, 10), nn.LogSoftmax(1))
        geninit.trace(block, image)
        geninit.trace(nn.TransformerEncoderLayer(16, 4, 32), torch.empty(2, 9, 16, device="meta"))
        geninit.trace(nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 5)), torch.zeros(2, 3, dtype=torch.long))
        geninit.vae_(network(), seed=0)
        geninit.ghn_(network())
        geninit.ghn_(network(), pretrained="auto")
        geninit.noise_ghn_(network(), 1)
        """,
        before="import torch",
    )
    assert "torch_geninit.planning.measure" in loaded
    assert not [name for name in loaded if name.startswith(slow)]
