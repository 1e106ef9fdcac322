"""From the name of a pretrained generator to a verified local file, and from there to the generator."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from torch_geninit._utils.near import did_you_mean
from torch_geninit._utils.tables import Table
from torch_geninit.hub import manifest, memo
from torch_geninit.hub.download import (
    DEFAULT_OPTIONS,
    HubError,
    HubOptions,
    Source,
    cached_file,
    fetch,
    problem,
    sha256,
)

__all__ = ["HubError", "Pretrained", "PretrainedList", "list_pretrained", "load", "locate"]

if TYPE_CHECKING:
    from torch_geninit.generators.base import WeightGenerator


_GENERATORS: memo.Memo[WeightGenerator] = memo.Memo(8, memo.mark)
_OUTLINES: memo.Memo[WeightGenerator] = memo.Memo(32, memo.mark)

AUTO = "auto"
"""Stands for whichever generator of an initialiser's own kind serves the model best."""
WIDEST = 45
"""Longest description of training data in the table; records have all of it."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pretrained generator and where its file is.

    Attributes:
        record: its record in the manifest.
        where: ``"shipped"`` with the package, ``"cached"`` from the Hub, ``"hub"`` if it would be downloaded,
            ``"missing"`` if it should have shipped but is not there, or not as the manifest says.
        path: the local file, its sha256 verified, or None.
    """

    record: manifest.Record
    where: Literal["shipped", "cached", "hub", "missing"]
    path: Path | None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def kind(self) -> str:
        return self.record.kind

    @property
    def size(self) -> int:
        return self.record.size

    @property
    def numbers(self) -> dict[str, Any]:
        return dict(self.record.numbers)


class PretrainedList(list[Pretrained]):
    """A list of pretrained generators that prints as a table."""

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        rows = [
            (
                entry.name,
                entry.kind,
                f"{entry.size / 1e6:.2f}",
                entry.where,
                shorten(entry.record.training_data, WIDEST, placeholder=" …"),
            )
            for entry in self
        ]
        return Table(("name", "kind", "MB", "file", "trained on"), rows, numbers=(2,))


def list_pretrained(*, cache_dir: str | os.PathLike[str] | None = None) -> PretrainedList:
    """List the pretrained generators: name, kind, size, where the file is, and what was measured.

    Reads the manifest and looks at local files; never uses the network.

    Args:
        cache_dir: the Hub cache to look into, if not the usual one.

    Returns:
        A list of ``Pretrained`` that prints as a table.

    Examples:
        >>> [entry.name for entry in geninit.list_pretrained() if entry.kind == "vae"]
        ['vae-cifar10']
    """
    found = PretrainedList()
    for record in manifest.read():
        source = _source(record)
        shipped = manifest.SHIPPED / record.filename
        if shipped.is_file() and sha256(shipped) == record.sha256:
            found.append(Pretrained(record, "shipped", shipped))
        elif source is None:
            found.append(Pretrained(record, "missing", None))
        elif (cached := cached_file(source, cache_dir)) and not problem(cached, source):
            found.append(Pretrained(record, "cached", cached))
        else:
            found.append(Pretrained(record, "hub", None))
    return found


def load(
    name_or_path: str | os.PathLike[str] | WeightGenerator,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> WeightGenerator:
    """Load a generator, once, to initialise many models with it.

    A name of the manifest is looked for in the package, in the Hub cache, then on the Hub, and its sha256 is
    verified wherever it is found. Of a path, and of a repository, the structure alone is checked.

    Args:
        name_or_path: a name out of ``list_pretrained``; the path of a .safetensors file (a string is a
            path if it ends in ``.safetensors`` or has a separator); a Hub repository ``owner/name``, which
            holds ``name.safetensors``, together with ``revision``; or a loaded generator, returned as it is.
        revision: commit of a repository, 40 hex digits. Names of the manifest have theirs.
        cache_dir: Hub cache, if not the usual one.
        local_files_only: never use the network.
        token: for the Hub, as its client takes it.

    Raises:
        HubError: if the file can't be loaded.
        GeneratorFileError: if the file is there and can't be used.
        ValueError: if ``revision`` is given with anything but a repository, or is no commit.

    Examples:
        >>> generator = geninit.load("vae-cifar10")
        >>> layers = [torch.nn.Conv2d(16, 16, 3) for _ in range(3)]
        >>> layers = [geninit.vae_(layer, pretrained=generator, seed=i) for i, layer in enumerate(layers)]
    """
    return resolve(name_or_path, HubOptions(revision, cache_dir, local_files_only, token))


def resolve(name_or_path: str | os.PathLike[str] | WeightGenerator, options: HubOptions) -> WeightGenerator:
    """Load a generator, as ``load``."""
    return _resolved(name_or_path, options, reuse=False)


def resolve_again(
    name_or_path: str | os.PathLike[str] | WeightGenerator, options: HubOptions
) -> WeightGenerator:
    """Load a generator, or return the one that was loaded by this name if its file is as it was.

    For the package's own use, which changes no generator; ``load`` gives everyone a generator of their own.
    """
    return _resolved(name_or_path, options, reuse=True)


def _resolved(
    name_or_path: str | os.PathLike[str] | WeightGenerator, options: HubOptions, *, reuse: bool
) -> WeightGenerator:
    from torch_geninit.generators.base import WeightGenerator
    from torch_geninit.hub import file

    revision = options.revision
    if isinstance(name_or_path, WeightGenerator):
        _refuse_revision(revision, "a loaded generator")
        return name_or_path
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"pretrained: expected a name, a path or what load() returned, got {type(name_or_path).__name__}"
        )
    text = os.fspath(name_or_path)
    separators = {os.sep, os.altsep or os.sep, "/"}
    if revision is not None and isinstance(name_or_path, str) and re.fullmatch(manifest.REPOSITORY, text):
        if not isinstance(revision, str) or not re.fullmatch(manifest.COMMIT, revision):
            raise ValueError(
                f"revision: expected a commit of 40 hex digits, got {revision!r}; a branch or a tag can "
                "move, and with it the initial weights"
            )
        source = Source(text, revision, f"{text.split('/')[1]}.safetensors")
        path = fetch(source, options)
    elif not isinstance(name_or_path, str) or text.endswith(".safetensors") or separators & set(text):
        _refuse_revision(revision, "a path")
        path = Path(text).expanduser()
        if isinstance(name_or_path, str) and re.fullmatch(manifest.REPOSITORY, text) and not path.exists():
            raise HubError(
                f"there is no file {text!r}. For a file pass its path, ending in .safetensors; for the Hub "
                f"repository {text} pass revision= too, the commit (40 hex digits) that is meant"
            )
    else:
        _refuse_revision(revision, "a name of the manifest")
        path = locate(text, options)

    def read(path: Path) -> WeightGenerator:
        weights = file.read(path)
        weights.source = text
        return weights

    return _GENERATORS.get(path, read, text) if reuse else read(path)


def locate(name: str, options: HubOptions = DEFAULT_OPTIONS) -> Path:
    """Return the verified local file of a name in the manifest, downloading it if need be.

    Raises:
        HubError: if there is no such name, or the file can't be loaded.
    """
    records = {record.name: record for record in manifest.read()}
    if name not in records:
        near = did_you_mean(name, records)
        hint = f" {near[0].upper()}{near[1:]}" if near else ""
        remedy = "For a file of your own pass its path, ending in .safetensors."
        if name.endswith((".pt", ".pth", ".joblib")):
            remedy = (
                "A published GHN has to be converted to a .safetensors file first: "
                f"python -m torch_geninit.convert {name} TARGET.safetensors"
            )
        if name == AUTO:
            remedy = (
                "The initialisers take 'auto' and choose for one model: "
                "plan(model, pretrained='auto').source says what."
            )
        raise HubError(
            f"there is no pretrained generator {name!r}.{hint} The manifest has: "
            f"{', '.join(records) or 'none'}. {remedy}"
        )
    record = records[name]
    shipped = manifest.SHIPPED / record.filename
    state = "not there"
    if shipped.is_file():
        if sha256(shipped) == record.sha256:
            return shipped
        state = f"changed: its sha256 is {sha256(shipped)} instead of {record.sha256}"
    source = _source(record)
    if source is None:
        raise HubError(
            f"generator {name!r} ships with torch-geninit and is not on the Hub, and its file {shipped} is "
            f"{state}. Install torch-geninit again, or pass the path of the file if you have it elsewhere."
        )
    return fetch(source, options, looked=(f"{shipped} ({state})",))


def outlines(
    kind: str, *, cache_dir: str | os.PathLike[str] | None = None
) -> Iterator[tuple[str, WeightGenerator]]:
    """Yield name and outline of every generator of ``kind`` whose file is here; nothing is downloaded.

    An outline has no values; it can plan, but not predict.

    Raises:
        HubError: if a file that should have shipped is missing or changed.
        GeneratorFileError: if a file can't be used.
    """
    from torch_geninit.hub import file

    for entry in list_pretrained(cache_dir=cache_dir):
        if entry.kind == kind and entry.where != "hub":
            path = entry.path or locate(entry.name, HubOptions(cache_dir=cache_dir))
            yield entry.name, _OUTLINES.get(path, file.outline)


def _source(record: manifest.Record) -> Source | None:
    if record.repo_id is None or record.revision is None:
        return None
    return Source(record.repo_id, record.revision, record.filename, record.sha256, record.size)


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} can't be combined with {what}: it is the commit of a Hub repository "
            "'owner/name'. A name of the manifest stands for one commit and one sha256."
        )
