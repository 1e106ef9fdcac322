"""What a prediction is worth: its network is run on the generator's probe, and right answers are counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_geninit._utils.surroundings import undisturbed
from torch_geninit._utils.tensors import has_no_values
from torch_geninit.batchnorm import NotFiniteError, calibrating
from torch_geninit.generators.compact import Compact, Tile
from torch_geninit.generators.entry import Entry, Route
from torch_geninit.generators.ghn.features import node_positions
from torch_geninit.generators.probe import LEAST_IMAGES, Probe
from torch_geninit.generators.request import Request
from torch_geninit.graph.architecture import Architecture, ParameterUse
from torch_geninit.graph.queries import head_nodes
from torch_geninit.graph.tracer.clone import tensors_in
from torch_geninit.graph.tracer.copying import Copier
from torch_geninit.graph.tracer.inputs import given
from torch_geninit.graph.tracer.runnable import Runnable, aside
from torch_geninit.parameters.dtensor import is_sharded
from torch_geninit.parameters.named import ParameterRef, list_parameters
from torch_geninit.parameters.targets import Targets
from torch_geninit.parameters.write import Assignment, write
from torch_geninit.planning.trial import Trial
from torch_geninit.planning.trust import Measured, above_chance

BUDGET, MOST = 40e9, 70e9
"""Multiplications of all images together, and where the fewest images need more: 1 to 2 s on a core,
twice that where He is run as well."""
PER_VALUE = 60
"""Multiplications that take as long as to write and read a value: of norms, activations, depthwise layers."""
ON_META = "the model has no values, on the meta device or fake"
"""Why nothing was measured of a model that is planned before it has memory."""
TABLE_STD = 0.02
"""Usual standard deviation of initial tables of positions and tokens, which fan-in says nothing of."""


def measure(trial: Trial, model: nn.Module, refs: Sequence[ParameterRef]) -> Measured | str:
    """Run a private copy of ``model`` with what would be written to it; or say why that can't be done.

    What the plan leaves keeps its values in the copy; a classifier is the generator's own, whatever becomes
    of the model's. It is not counted where the probe has classes of its own. Nothing is written to the model.
    Images are brought to the size that the graph was traced with, or keep their own where that is too costly.
    """
    if trial.pretrained.probe is None:
        return f"{trial.source} has no probe images"
    graph = trial.request.architecture
    if graph is None or any(has_no_values(ref.parameter) for ref in refs):
        return ON_META
    heads = {use.name for index in head_nodes(graph) for use in graph.nodes[index].parameters}
    filled = (Route.GENERATED, Route.TIED)
    if any(
        is_sharded(ref.parameter) and entry.route not in filled and ref.name not in heads
        for ref, entry in zip(refs, trial.request.entries, strict=True)
    ):
        return "what the model keeps is sharded, and no rank has all of it"
    shown = _shown(trial, trial.pretrained.probe, graph)
    if isinstance(shown, str):
        return shown
    try:
        with aside(), trial.pretrained.unhooked():
            return _Run(trial, graph, model).measure(shown, trial.pretrained.probe)
    except NotFiniteError:
        others = trial.pretrained.probe.classes
        classes = len(others or trial.pretrained.config["classes"])
        return Measured(len(shown), classes, tuple(shown.shape[1:]), None if others else 0, 0, 0, 0, {})
    except _CannotRunError as error:
        size = next(node.shape[1:] for node in graph.nodes if node.op == "input")
        if shown.shape[1:] != size:
            return _too_costly(graph, size)
        return f"it could not be run on the probe ({error})"


@undisturbed()
def statistics_of(trial: Trial, model: nn.Module, values: Mapping[str, Compact]) -> Mapping[str, Tensor]:
    """Return the running statistics on the probe of a member with noise, whose ``values`` are its own.

    Those of the member without would be wrong: a noisy one of 77 % falls to 46 % with them.
    """
    probe, graph = trial.pretrained.probe, trial.request.architecture
    shown = _shown(trial, probe, graph) if probe is not None and graph is not None else ""
    if graph is None or isinstance(shown, str):
        return {}
    statistics: dict[str, Tensor] = {}
    try:
        with aside(), trial.pretrained.unhooked():
            _Run(trial, graph, model).statistics(shown, values, statistics)
    except (NotFiniteError, _CannotRunError):
        return {}
    return statistics


def _shown(trial: Trial, probe: Probe, graph: Architecture) -> Tensor | str:
    """Return as many images of the probe as a network may see, in its size; or say why it can't see them."""
    read = [node.shape for node in graph.nodes if node.op == "input"]
    if len(read) != 1 or len(read[0]) != 4 or read[0][1] not in (1, probe.images.shape[1]):
        return "its input is no image like those of the probe"
    size, each = read[0][1:], cost(graph)
    count = affordable(each, len(probe.labels))
    if count == 0:
        own = (size[0], *probe.images.shape[2:])
        share = math.prod(own) / math.prod(size)
        size, count = own, affordable(each * share, len(probe.labels)) if share < 1 else 0
    if count == 0:
        return _too_costly(graph, read[0][1:])
    return prepared(probe.first(count), trial.pretrained.config["input"], size)


def _too_costly(graph: Architecture, size: tuple[int, ...]) -> str:
    return f"at {times(size)} an image takes {cost(graph):.2g} multiplications, too many to try it"


def affordable(each: float, images: int) -> int:
    """Return on how many of the probe's images a network is run that costs ``each``; 0 if none."""
    count = min(images, int(BUDGET / each))
    if count < LEAST_IMAGES <= images:
        return LEAST_IMAGES if LEAST_IMAGES * each <= MOST else 0
    return count


def cost(graph: Architecture) -> float:
    """Count the multiplications for one image, and what takes as long as they do."""
    batch = max(next(node.shape[0] for node in graph.nodes if node.op == "input"), 1)
    total = 0.0
    for node, positions in zip(graph.nodes, node_positions(graph), strict=True):
        total += PER_VALUE * math.prod(node.shape) / batch
        if node.op in ("conv", "conv_transpose", "linear", "recurrent"):
            total += positions * sum(math.prod(use.shape) for use in node.parameters if len(use.shape) > 1)
        if node.op == "attention" and len(node.shape) > 2:
            total += 2 * positions * math.prod(node.shape) / batch
    return total


def prepared(probe: Probe, record: Mapping[str, Any], size: tuple[int, ...]) -> Tensor:
    """Normalise the probe's images and bring them to ``size`` (C, H, W); in grey if it has one channel."""
    images = probe.images.float() / 255
    mean, std = (torch.tensor(record[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images = (images - mean) / std
    if images.shape[1] > size[0]:
        images = images.mean(1, keepdim=True)
    if images.shape[2:] != size[1:]:
        images = F.interpolate(images, size[1:], mode="bilinear", antialias=True)
    return images


def times(size: tuple[int, ...]) -> str:
    """Write a size as 3 x 32 x 32."""
    return " x ".join(map(str, size))


class _CannotRunError(Exception):
    """A copy that can't be made or run."""


@contextmanager
def _users_code() -> Iterator[None]:
    """Turn whatever the code of a model may raise into one kind of error; ours passes."""
    try:
        yield
    except (NotFiniteError, MemoryError):
        raise
    except Exception as error:
        raise _CannotRunError(f"{type(error).__name__}: {str(error).strip()[:100]}") from error


class _Run:
    """A copy of a planned model, filled with the prediction or by He, and run on images."""

    def __init__(self, trial: Trial, graph: Architecture, model: nn.Module) -> None:
        self.request, self.pretrained = trial.request, trial.pretrained
        self.example_inputs = trial.example_inputs
        self.graph = graph
        self.classes = len(trial.pretrained.config["classes"])
        with _users_code():
            self.copy = Runnable(model)
            self.targets: Targets = trial.parameters.match(self.copy.module)

    def measure(self, images: Tensor, probe: Probe) -> Measured:
        """Count right answers, by class means alone where the probe has classes of its own."""
        labels, classes = probe.labels[: len(images)], len(probe.classes) or self.classes
        self._fill(self.pretrained.predict(self.request, seed=None, noise_scale=0.0))
        heads = self._own_heads()
        statistics: dict[str, Tensor] = {}
        outputs, features = self._forward(images, heads, statistics)
        near = nearest_mean(features, labels, classes)
        found = Measured(
            images=len(labels),
            classes=classes,
            size=tuple(images.shape[1:]),
            right=None if probe.classes else self._right(outputs, labels),
            near=None if near is None else int(near.sum()),
            gained=None,
            lost=None,
            statistics=statistics,
        )
        if near is None or above_chance(found):
            return found
        self._fill(he(self.request.generated))
        usual = nearest_mean(self._forward(images, heads, {})[1], labels, classes)
        if usual is None:
            return found
        return found._replace(gained=int((near & ~usual).sum()), lost=int((usual & ~near).sum()))

    def statistics(self, images: Tensor, values: Mapping[str, Compact], found: dict[str, Tensor]) -> None:
        self._fill(values)
        self._forward(images, [], found)

    def _fill(self, values: Mapping[str, Compact]) -> None:
        write([Assignment(ref, values[name]) for ref, name in self.targets.filled.values()])

    def _own_heads(self) -> list[Tensor]:
        """Give the copy the generator's own classifiers, if they can be had; return what they consist of."""
        heads = head_nodes(self.graph)
        names = {use.name for index in heads for use in self.graph.nodes[index].parameters}
        refs = {ref.key: ref for ref in list_parameters(self.copy.module)}
        own = {e.name: refs[e.canonical, e.part] for e in self.request.entries if e.name in names}
        if all(e.route is Route.GENERATED for e in self.request.entries if e.name in names) and all(
            outputs == self.classes for outputs in heads.values()
        ):
            return [getattr(ref.owner, ref.attribute) for ref in own.values()]
        request = _classifying(self.request, self.graph, heads, self.classes)
        able = all(
            self.pretrained.refusal(entry, request.architecture) is None for entry in request.generated
        )
        if able and not any(ref.norm or ref.blocked for ref in own.values()):
            values = self.pretrained.predict(request, seed=None, noise_scale=0.0)
            for name, compact in values.items():
                own[name].owner._parameters[own[name].attribute] = nn.Parameter(compact.expand())
        return [getattr(ref.owner, ref.attribute) for ref in own.values()]

    def _forward(
        self, images: Tensor, heads: list[Tensor], statistics: dict[str, Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the outputs, and what the classifier reads, or the first output where there is none."""
        args: tuple[Any, ...] = (images,)
        kwargs: Mapping[str, Any] = {}
        if self.example_inputs is not None:
            called = given(self.example_inputs)
            args, kwargs = Copier(lambda tensor: images)((called.args, dict(called.kwargs)))
        with _users_code(), _Readers(heads) as readers, calibrating(self.copy.module) as layers:
            outputs = [
                t.float() for t in tensors_in(self.copy(*args, **kwargs)) if t.shape[:1] == images.shape[:1]
            ]
        for layer in layers:
            if layer.calibrated:
                for name, tensor in layer.module.named_buffers(recurse=False):
                    statistics[f"{layer.name}.{name}".lstrip(".")] = tensor.clone()
        return outputs, _pooled(readers.found or outputs, len(images))

    def _right(self, outputs: list[Tensor], labels: Tensor) -> int | None:
        for output in outputs:
            if output.flatten(1).shape[1] == self.classes == output.shape[1]:
                scores = output.flatten(1)
                answers = scores.argmax(1).where(scores.isfinite().all(1), -1)
                return int((answers == labels).sum())
        return None


class _Readers(TorchFunctionMode):
    """Note what is read together with one of the tensors ``weights``."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = {id(weight) for weight in weights}
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        if any(id(tensor) in self.weights for tensor in tensors):
            self.found += [tensor for tensor in tensors[:1] if id(tensor) not in self.weights]
        return func(*args, **(kwargs or {}))


def _pooled(found: list[Tensor], count: int) -> Tensor:
    """Return the first of one row an image, averaged over its positions: (N, C)."""
    for tensor in found:
        if tensor.ndim > 1 and len(tensor) == count:
            values = tensor.float()
            if values.ndim == 3:  # tokens come before their channels
                return values.mean(1)
            return values if values.ndim == 2 else values.flatten(2).mean(2)
    raise ValueError("it has no output for each image")


def _classifying(asked: Request, graph: Architecture, heads: Mapping[int, int], classes: int) -> Request:
    """Ask for the heads alone, each with as many outputs as the generator has classes."""
    nodes = list(graph.nodes)
    entries: dict[str, tuple[int, ParameterUse]] = {}
    for index in heads:
        node = nodes[index]
        axis = 1 if node.op == "conv" else len(node.shape) - 1
        shape = (*node.shape[:axis], classes, *node.shape[axis + 1 :])
        uses = tuple(replace(use, shape=(classes, *use.shape[1:])) for use in node.parameters)
        nodes[index] = replace(node, shape=shape, parameters=uses)
        entries |= {use.name: (index, use) for use in uses}

    def wanted(entry: Entry) -> Entry:
        if entry.name not in entries:
            return replace(entry, route=Route.KEPT)
        index, use = entries[entry.name]
        return replace(entry, route=Route.GENERATED, shape=use.shape, role=use.role, node=index)

    return Request(entries=tuple(map(wanted, asked.entries)), architecture=replace(graph, nodes=tuple(nodes)))


def he(entries: tuple[Entry, ...]) -> dict[str, Tile]:
    """Draw weights with He initialisation, norms of one and biases of zero, from a seed of its own."""
    stream = torch.Generator().manual_seed(0)
    drawn = {}
    for entry in entries:
        if entry.fan_in:
            std = math.sqrt(2 / entry.fan_in) if entry.role == "weight" else TABLE_STD
            values = std * torch.randn(entry.shape, generator=stream)
        else:
            values = torch.full(entry.shape, float(entry.role == "weight"))
        drawn[entry.name] = Tile(values, entry.shape)
    return drawn


def nearest_mean(features: Tensor, labels: Tensor, classes: int) -> Tensor | None:
    """Tell which images (N,) are nearest to their own class's mean, each left out of it.

    None with less than two images of a class.
    """
    counts = torch.bincount(labels, minlength=classes)
    if int(counts.min()) < 2:
        return None
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features)
    distances = torch.cdist(features, sums / counts[:, None], compute_mode="donot_use_mm_for_euclid_dist")
    left_out = (sums[labels] - features) / (counts[labels] - 1)[:, None]
    distances[torch.arange(len(labels)), labels] = (features - left_out).norm(dim=1)
    return (distances.argmin(1) == labels) & features.isfinite().all(1)
