"""One file of a Hub repository at one commit: from the cache if it is there and sound, else downloaded."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch_geninit._version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

TIMEOUT_SECONDS = 5.0
"""For the first answer of the Hub, instead of the client's own retries, which take 23 seconds and up."""

_NAME = "torch-geninit"
_CHUNK = 1 << 20
_digests: dict[tuple[str, int, int, int, int], str] = {}


class HubError(OSError):
    """A pretrained generator could not be loaded; the message says which, where we looked, and what to do.

    Examples:
        >>> try:
        ...     geninit.load("ghn-cifar")
        ... except geninit.HubError as error:
        ...     print(error.args[0].partition("?")[0])
        there is no pretrained generator 'ghn-cifar'. Did you mean 'ghn-cifar10'
    """


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a file is fetched from the Hub, under the names that its client has for it.

    Attributes:
        revision: commit of a repository, 40 hex digits; names of the manifest have theirs.
        cache_dir: Hub cache, if not the usual one.
        local_files_only: never use the network.
        token: for the Hub, as its client takes it.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None

    def __post_init__(self) -> None:
        if self.cache_dir is not None and not isinstance(self.cache_dir, str | os.PathLike):
            raise TypeError(f"cache_dir: expected a folder, got {self.cache_dir!r}")
        if not isinstance(self.local_files_only, bool):
            raise TypeError(f"local_files_only: expected True or False, got {self.local_files_only!r}")


DEFAULT_OPTIONS = HubOptions()


@dataclass(frozen=True, slots=True)
class Source:
    """A file in a Hub repository at one commit, with its expected content where that is known."""

    repo_id: str
    revision: str
    filename: str
    sha256: str | None = None
    size: int | None = None


def fetch(source: Source, options: HubOptions = DEFAULT_OPTIONS, *, looked: tuple[str, ...] = ()) -> Path:
    """Return the cached file of ``source``, downloading it first if it is not there or is damaged.

    A sound cached file costs no request and no write, so a read-only cache serves.

    Args:
        source: file to fetch.
        options: how it is fetched; the revision is the source's.
        looked: places where it was looked for before, for the error.

    Raises:
        HubError: if it can't be loaded.
    """
    from huggingface_hub import errors

    damage = None
    try:
        cached = cached_file(source, options.cache_dir)
        damage = problem(cached, source) if cached else None
        if cached and not damage:
            return cached
        if options.local_files_only:
            raise errors.OfflineModeIsEnabled("local_files_only=True forbids to download it")
        _ask(source, options.token)
        if damage and cached and not cached.is_symlink():
            # Where a cache has no symbolic links, the client would leave this very file in place.
            cached.unlink()
        path = _download(source, options.cache_dir, options.token, force=damage is not None)
        if difference := problem(path, source):
            raise OSError(f"what the Hub sent is not what the manifest names: {difference}")
        return path
    except _errors() as error:
        state = f"there, but {damage}" if damage else "not there"
        places = (*looked, f"the Hub's cache {_cache(options.cache_dir)} ({state})")
        raise HubError(_message(source, error, places, options.cache_dir)) from error


def pinned(source: Source, *, token: str | bool | None = None) -> Source:
    """Return ``source`` at a commit: what its revision, perhaps a branch or a tag, is now.

    Where the Hub can't be asked, the cache knows what a branch was when it was downloaded.

    Raises:
        HubError: if neither can be loaded.
    """
    if re.fullmatch("[0-9a-f]{40}", source.revision):
        return source
    try:
        commit = _metadata(source, token).commit_hash or ""
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise OSError(f"{_endpoint()} doesn't answer as the Hub does: commit {commit!r}")
    except _errors() as error:
        cached = cached_file(source)
        if cached is None:
            places = (f"the Hub's cache {_cache(None)} (not there)",)
            raise HubError(_message(source, error, places, None)) from error
        commit = cached.parts[-1 - len(Path(source.filename).parts)]
    return replace(source, revision=commit)


def cached_file(source: Source, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file in the Hub cache, unverified, or None; no request, no write."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        source.repo_id, source.filename, cache_dir=_cache(cache_dir), revision=source.revision
    )
    return Path(found) if isinstance(found, str) else None


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hex, computed once in a process for each state of the file."""
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    if key not in _digests:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]


def _cache(cache_dir: str | os.PathLike[str] | None) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()


def problem(path: Path, source: Source) -> str | None:
    """Say how the file differs from what ``source`` expects, or None if it doesn't."""
    if source.size is not None and path.stat().st_size != source.size:
        return f"{path} has {path.stat().st_size} bytes instead of {source.size}"
    if source.sha256 is not None and sha256(path) != source.sha256:
        return f"{path} has sha256 {sha256(path)} instead of {source.sha256}"
    return None


def _errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    return (
        errors.HTTPError,  # type: ignore[attr-defined]  # the HTTP library's own, whichever the client uses
        errors.EntryNotFoundError,
        errors.XetDownloadError,
        OSError,
        RuntimeError,  # what the client's transfer library, hf_xet, raises
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _metadata(source: Source, token: str | bool | None) -> HfFileMetadata:
    """Ask for the file's metadata: the client retries a download for long, but not this."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    asked_for = constants.HF_HUB_ETAG_TIMEOUT
    return get_hf_file_metadata(
        hf_hub_url(source.repo_id, source.filename, revision=source.revision),
        token=token,
        timeout=TIMEOUT_SECONDS if asked_for == constants.DEFAULT_ETAG_TIMEOUT else asked_for,
        library_name=_NAME,
        library_version=__version__,
    )


def _ask(source: Source, token: str | bool | None) -> None:
    answer = _metadata(source, token)
    # The client makes file names of these two.
    if answer.commit_hash != source.revision or not re.fullmatch(
        r"[0-9A-Za-z][0-9A-Za-z._-]{7,127}", answer.etag or ""
    ):
        raise OSError(
            f"{_endpoint()} doesn't answer as the Hub does: commit {answer.commit_hash!r}, "
            f"etag {answer.etag!r}"
        )
    if source.size is not None and answer.size is not None and answer.size != source.size:
        raise OSError(f"the file there has {answer.size} bytes, the manifest says {source.size}")


def _download(
    source: Source, cache_dir: str | os.PathLike[str] | None, token: str | bool | None, *, force: bool
) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                source.repo_id,
                source.filename,
                revision=source.revision,
                cache_dir=_cache(cache_dir),
                token=token,
                force_download=force,
                library_name=_NAME,
                library_version=__version__,
            )
        )
    except ValueError as error:
        # What the client makes of a connection lost when it was told to download again.
        if force and error.__cause__ is not None:
            raise OSError(str(error.__cause__)) from error
        raise


def _message(
    source: Source,
    error: Exception,
    places: tuple[str, ...],
    cache_dir: str | os.PathLike[str] | None,
) -> str:
    command = ["hf", "download", source.repo_id, source.filename, "--revision", source.revision]
    if cache_dir is not None:
        command += ["--cache-dir", str(_cache(cache_dir))]
    return "\n".join(
        [
            f"{source.filename} could not be loaded: {_reason(error)}.",
            f"  repository: {source.repo_id}",
            f"  revision:   {source.revision}",
            *(f"  looked in:  {place}" for place in places),
            "What helps:",
            "  - be online, without HF_HUB_OFFLINE=1 and local_files_only=True; or",
            f"  - download it in advance: {shlex.join(command)}; or",
            f"  - pass the path of a copy in its place: 'path/to/{source.filename}'.",
        ]
    )


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    # From the special to the general: a gated repository's error is also a missing repository's.
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "it would have to be downloaded, and offline mode is on"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} wants you to ask for access to this repository first, and to pass token="
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{where} knows no such repository, or the token does not open it (token= if it is private)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has the repository, but not this revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{where} has the repository, but not this file"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        hints = {401: ": it does not accept the token", 429: ": too many requests, wait some minutes"}
        return f"{where} answered HTTP {status}{hints.get(status, '')}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{where} stopped answering"
    if isinstance(error, PermissionError):
        return f"{error.filename or 'the cache'} can't be written ({error.strerror or error})"
    if isinstance(error, OSError):
        return str(error)
    return (
        f"no complete answer from {where} ({type(error).__name__}: {error}); HF_HUB_ETAG_TIMEOUT and "
        "HF_HUB_DOWNLOAD_TIMEOUT change how long is waited"
    )
