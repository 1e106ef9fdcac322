"""Upload an exported generator and its model card to the Hugging Face Hub; pin the commit in the manifest."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from dataclasses import dataclass, replace

from huggingface_hub import CommitOperationAdd, HfApi

from torch_geninit._version import __version__
from torch_geninit.hub import manifest
from torch_geninit.training.release import model_card


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub in one commit."""

    record: manifest.Record
    repo_id: str
    files: dict[str, bytes]

    def __str__(self) -> str:
        lines = [f"repository {self.repo_id}, one commit with:"]
        for name, content in self.files.items():
            lines.append(f"  {name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        return "\n".join(lines)


def prepare(name: str, owner: str) -> Upload:
    """Collect what publishing ``name`` would send; nothing is sent.

    Args:
        name: of a generator in the manifest; the repository will be ``owner/name``, so that users can load it
            by that and a commit, too.
        owner: user or organisation on the Hub.

    Raises:
        ValueError: if the manifest has no such name, or its file has changed since it was exported.
    """
    records = {record.name: record for record in manifest.read()}
    if name not in records:
        raise ValueError(f"the manifest has no generator {name!r}, only {', '.join(records) or 'none'}")
    record, repo_id = records[name], f"{owner}/{name}"
    if not re.fullmatch(manifest.REPOSITORY, repo_id):
        raise ValueError(f"owner: expected the name of a user or organisation, got {owner!r}")
    content = (manifest.SHIPPED / record.filename).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError(f"{record.filename} is not the file that the manifest describes: export it again")
    return Upload(
        record, repo_id, {record.filename: content, "README.md": model_card.render(record).encode()}
    )


def publish(upload: Upload, *, token: str | None = None, private: bool = False) -> manifest.Record:
    """Upload, check what arrived, and write repository and commit into the manifest.

    Args:
        upload: what :func:`prepare` returned.
        token: with the right to write; by default the one the Hub client has stored.
        private: whether a repository that is created now is private.

    Returns:
        The manifest's new record.

    Raises:
        OSError: if the Hub refuses, or holds something else than was sent; the manifest is then unchanged.
    """
    api = HfApi(token=token, library_name="torch-geninit", library_version=__version__)
    api.create_repo(upload.repo_id, private=private, exist_ok=True)
    commit = api.create_commit(
        upload.repo_id,
        operations=[CommitOperationAdd(name, content) for name, content in upload.files.items()],
        commit_message=f"Upload {upload.record.name} (torch-geninit {__version__})",
    )
    paths = api.get_paths_info(upload.repo_id, list(upload.files), revision=commit.oid)
    arrived = {entry.path: entry for entry in paths}
    for name, content in upload.files.items():
        entry = arrived.get(name)
        if entry is None or _hub_hash(entry) not in (hashlib.sha256(content).hexdigest(), _git_hash(content)):
            raise OSError(
                f"{upload.repo_id} at {commit.oid} does not hold {name} as it was sent; the manifest is "
                "unchanged. Publish again."
            )
    record = replace(upload.record, repo_id=upload.repo_id, revision=commit.oid)
    manifest.update(record)
    return record


def _hub_hash(entry: object) -> str:
    large = getattr(entry, "lfs", None)
    return str(large.sha256 if large is not None else getattr(entry, "blob_id", ""))


def _git_hash(content: bytes) -> str:
    # The name that git gives to a small file's content; no secret depends on it.
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of an exported generator in the manifest")
    parser.add_argument("--owner", required=True, help="user or organisation; the repository is OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be sent")


def main(arguments: argparse.Namespace) -> None:
    upload = prepare(arguments.name, arguments.owner)
    sys.stdout.write(f"{upload}\n")
    if arguments.dry_run:
        sys.stdout.write(f"\n{upload.files['README.md'].decode()}\nNothing was sent.\n")
        return
    record = publish(upload, token=os.environ.get("HF_TOKEN"), private=arguments.private)
    sys.stdout.write(f"{record.repo_id} at {record.revision}, written into the manifest\n")
