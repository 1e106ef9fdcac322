"""What to expect of a generated network before training it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from torch_geninit import initializers
from torch_geninit._utils.tables import Table
from torch_geninit.graph.architecture import Architecture
from torch_geninit.graph.tracer.trace import GUESSED
from torch_geninit.planning.build import OTHER_HEAD
from torch_geninit.planning.choose import DEFAULTS, Pretrained
from torch_geninit.planning.filters import FROZEN
from torch_geninit.planning.measure import times
from torch_geninit.planning.plan import Plan
from torch_geninit.planning.trust import interval


class Expectation(NamedTuple):
    """The accuracy of generated weights before any training, measured on the generator's probe.

    Where the model has no classifier, or the probe other classes than the generator, the nearest class mean
    of the features classifies: each image is left out of its class's mean.

    Attributes:
        accuracy: share of the probe's images classified correctly, BatchNorm on their statistics.
        low, high: ends of the 95 % interval (Wilson 1927).
        images: how many images that is.
        size: (C, H, W) that the images were brought to, as the model reads them.
        mean, std: normalisation by channel that the weights are made for, of pixels from 0 to 1.
        caveat: why the model itself will not start like that, empty where it will: it is kept, for lack
            of trust, or its classifier, or the images' size was guessed.
        source: the generator that was asked.
        by: what classified, ``"classifier"`` or ``"nearest class mean"``.
        usual: the class means' accuracy from He initialisation; None where the classifier was measured.

    Examples:
        >>> from torch_geninit.training.networks.resnet import resnet20
        >>> expected = geninit.expect(resnet20(), pretrained="ghn-cifar10")
        >>> expected.low < expected.accuracy < expected.high, expected.images, expected.size
        (True, 160, (3, 32, 32))
    """

    accuracy: float
    low: float
    high: float
    images: int
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caveat: str = ""
    source: str = ""
    by: str = "classifier"
    usual: float | None = None

    def __str__(self) -> str:
        condition = f"{self.caveat}. If it were otherwise: " if self.caveat else ""
        return (
            f"{condition}{100 * self.accuracy:.0f} % ({self._interval}) of {self.images} images of "
            f"{times(self.size)} before training{self._means}, by {self.source}; {self._normalisation}"
        )

    @property
    def _means(self) -> str:
        if self.usual is None:
            return ""
        return f" by the {self.by} of the features, {100 * self.usual:.0f} % from He initialisation"

    @property
    def _interval(self) -> str:
        return f"{100 * self.low:.0f} to {100 * self.high:.0f} %"

    @property
    def _normalisation(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"pixels from 0 to 1, minus {mean}, divided by {std}"

    def _repr_html_(self) -> str:
        rows = [
            (f"accuracy before training{self._means}", f"{100 * self.accuracy:.0f} %"),
            ("95 % interval", self._interval),
            ("images", f"{self.images} of {times(self.size)}"),
            ("normalisation", self._normalisation),
            ("generator", self.source),
        ]
        above = [f"{self.caveat}. If it were otherwise:"] if self.caveat else []
        return Table(("what to expect", ""), rows, above=above)._repr_html_()


def expect(
    model: nn.Module,
    *,
    pretrained: Pretrained = DEFAULTS["ghn"],
    example_inputs: Any = None,
    graph: Architecture | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Expectation:
    """Measure how accurate ``model`` will be with generated weights, before any training.

    A private copy with these weights is run on the generator's probe; nothing is written. It speaks of images
    like the generator's own.

    Args:
        model: any network that reads images. It is not called; its forward pass runs on a copy, and may have
            effects outside of it (see ``trace``).
        pretrained: as in ``ghn_``.
        example_inputs, graph: as in ``ghn_``.
        revision, cache_dir, local_files_only, token: as in ``ghn_``.

    Returns:
        Measured accuracy with its 95 % interval, images and normalisation assumed, the generator that was
        asked, and a caveat where the initialiser would keep the model or its classifier.

    Raises:
        ValueError: if there is nothing to measure, or no way to: it says why.
        TraceError, HubError: as ``ghn_``.

    Examples:
        >>> from torch_geninit.training.networks.resnet import resnet20
        >>> 0.8 < geninit.expect(resnet20(), pretrained="ghn-cifar10").accuracy < 1
        True
    """
    made = initializers.plan(
        model,
        "ghn",
        pretrained=pretrained,
        example_inputs=example_inputs,
        graph=graph,
        untrusted="generate",
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    if not made.generated:
        reasons = Counter(entry.reason for entry in made.entries).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "it has no parameters"
        raise ValueError(
            f"{type(model).__name__} has no parameter that {made.source} would generate, so there is nothing "
            f"to expect: {why}"
        )
    measured = made.verdict.measured if made.verdict is not None else None
    right = None if measured is None else measured.right if measured.right is not None else measured.near
    if measured is None or right is None:
        why = "it has no output with a number for each class"
        if measured is None and made.verdict is not None:
            why = made.verdict.reason
        raise ValueError(f"{made.source} can't tell what to expect of {type(model).__name__}: {why}")
    by_means = measured.right is None
    images = made.pretrained.config["input"]
    low, high = interval(right, measured.images)
    return Expectation(
        accuracy=right / measured.images,
        low=low,
        high=high,
        images=measured.images,
        size=measured.size,
        mean=tuple(images["mean"]),
        std=tuple(images["std"]),
        caveat="; ".join(_caveats(made)),
        source=made.source,
        by="nearest class mean" if by_means else "classifier",
        usual=measured.usual / measured.images if by_means and measured.usual is not None else None,
    )


def _caveats(made: Plan) -> Iterator[str]:
    """Say why the model will not start like that."""
    if made.verdict is not None and not made.verdict.trusted:
        yield (
            f'not trusted, ghn_ leaves the model as it is unless untrusted="generate" ({made.verdict.reason})'
        )
    heads = [entry for entry in made.kept if entry.reason.startswith(OTHER_HEAD)]
    if heads:
        yield f"the classifier {heads[0].name!r} keeps its values ({heads[0].reason})"
    frozen = [entry for entry in made.kept if entry.reason.startswith(FROZEN)]
    if frozen:
        yield f"{len(frozen)} parameters keep their values, the first is {frozen[0].name!r} ({FROZEN})"
    graph, own = made.architecture, tuple(made.pretrained.config["input"]["size"])
    if graph is not None and made.verdict is not None and made.verdict.measured is not None:
        if made.verdict.measured.size != own:  # a guess at the generator's own images needs no word
            yield from (note for note in graph.notes if note.startswith(GUESSED))
