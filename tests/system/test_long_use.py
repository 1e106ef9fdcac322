"""A process that goes on: many calls, many threads, workers that are forked or spawned."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import torch_geninit as geninit
from tests.conftest import tiny_generator
from tests.support import processes
from tests.support.contract import same, settings_of_torch, values
from tests.support.ghn_checkpoints import original
from torch_geninit.convert.__main__ import build
from torch_geninit.generators.base import WeightGenerator

File = Callable[[str], Path]


def net(width: int = 8) -> nn.Module:
    """One layer that no small generator fills, so that every verb has something to say."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4, 5),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def calls(tiny_file: File) -> Iterator[Callable[[], nn.Module]]:
    """Every verb, for ever, with a file that is read each time and with an object, and what fails."""
    loaded = geninit.load(tiny_file("noise-ghn"))
    options: dict[str, Any] = {"untrusted": "generate"}
    while True:
        yield lambda: geninit.vae_(net(), pretrained=tiny_file("vae"), seed=1)
        yield lambda: geninit.ghn_(net(), pretrained=tiny_file("ghn"), **options)
        yield lambda: geninit.noise_ghn_(net(), 1, pretrained=loaded, **options)
        yield lambda: geninit.plan(net(), pretrained=loaded).write_(net(), unfilled="reset")
        yield lambda: refused(tiny_file)


def refused(tiny_file: File) -> nn.Module:
    """An error keeps its frames alive, and they everything in them, if anything keeps the error."""
    model = net()
    with pytest.raises(geninit.StrictError):
        geninit.ghn_(model, pretrained=tiny_file("ghn"), strict=True)
    with pytest.raises(geninit.TraceError):
        geninit.trace(model, torch.zeros(1, 7))
    return model


def footprint() -> dict[str, int]:
    """What may grow from call to call."""
    gc.collect()
    objects = gc.get_objects()
    found = {
        "objects": len(objects),
        "tensors": sum(issubclass(type(item), Tensor) for item in objects),
        "modules": sum(issubclass(type(item), nn.Module) for item in objects),
        "threads": threading.active_count(),
    }
    if Path("/proc/self/fd").exists():
        found["files"] = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore::torch_geninit.GenInitWarning")
def test_calls_leave_nothing_behind(tiny_file: File, count: int) -> None:
    sequence = calls(tiny_file)
    for _ in range(50):  # imports, caches, the allocator's reserves
        next(sequence)()
    before = footprint()
    for _ in range(count):
        next(sequence)()
    after = footprint()
    assert after.pop("bytes", 0) - before.pop("bytes", 0) < 8 << 20
    assert after.pop("objects") - before.pop("objects") < 100
    assert after == before


def test_the_footprint_notices(tiny_file: File) -> None:
    before = footprint()
    kept = [geninit.vae_(net(), pretrained=tiny_file("vae"), seed=1, exclude="3.*"), open(os.devnull)]
    after = footprint()
    assert all(after[what] > before[what] for what in before if what not in ("threads", "bytes"))
    kept[1].close()  # type: ignore[union-attr]


def published() -> WeightGenerator:
    return build(original("GHN-3"), {})


def test_a_warning_is_told_once_for_a_line(tiny_file: File) -> None:
    """Python does so by itself, unless somebody swaps its filters: then all it ever said is said again."""
    script = """
        import sys
        import torch
        import torch_geninit as geninit
        from tests.system.test_long_use import net, published

        vae, ghn, noise_ghn = sys.argv[1:]
        published = published()
        for seed in range(2):
            geninit.vae_(net(), pretrained=vae, seed=seed)
            geninit.ghn_(net(), pretrained=ghn)
            geninit.noise_ghn_(net(), seed, pretrained=noise_ghn)
            model = net()
            model.unused = torch.nn.Parameter(torch.ones(2, 2))
            geninit.ghn_(model, pretrained=published, example_inputs=torch.zeros(1, 3, 16, 16))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *(tiny_file(k) for k in ("vae", "ghn", "noise-ghn"))],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "GenInitWarning" in line]
    assert len(told) == 4, done.stderr


def test_eight_threads_leave_the_process_as_it_was() -> None:
    """All generators at once, those included that read a network by running it with gradients."""
    generators = [tiny_generator("ghn"), published()]
    inputs = torch.zeros(1, 3, 16, 16)

    found: dict[int, dict[str, Tensor]] = {}

    def fill(index: int, model: nn.Module) -> None:
        generator = generators[index % 2]
        plan = geninit.plan(model, pretrained=generator, example_inputs=inputs, untrusted="generate")
        found[index] = values(plan.write_(model))

    for index in range(8):
        fill(index, net(8 + index))
    expected = dict(found)
    for _ in range(3):
        models = [net(8 + index) for index in range(8)]
        found.clear()
        before = settings_of_torch(), list(warnings.filters), torch.get_rng_state()
        threads = [threading.Thread(target=fill, args=item) for item in enumerate(models)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = settings_of_torch(), list(warnings.filters), torch.get_rng_state()
        assert after[:2] == before[:2] and torch.equal(after[2], before[2])
        assert all(same(found[index], expected[index]) for index in range(8))


class Members(Dataset[Tensor]):
    """Each item is all the weights of one member of an ensemble, by a loaded generator or by a file."""

    def __init__(self, *generators: WeightGenerator | Path) -> None:
        self.generators = generators

    def __len__(self) -> int:
        return 4

    def __getitem__(self, seed: int) -> Tensor:
        generator = self.generators[seed % len(self.generators)]
        model = geninit.noise_ghn_(net(), seed, pretrained=generator, untrusted="generate", exclude="3.*")
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_of_a_data_loader(tiny_file: File, way: str) -> None:
    if way not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {way} here")
    path = tiny_file("noise-ghn")
    members = Members(geninit.load(path), path)
    torch.set_num_threads(2)
    try:
        torch.ones(300, 300) @ torch.ones(300, 300)  # starts the threads that a fork doesn't take along
        expected = torch.stack([members[seed] for seed in range(4)])
        loader = DataLoader(members, 2, num_workers=1, multiprocessing_context=way, timeout=240)
        found = torch.cat(list(loader))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], found[1])
