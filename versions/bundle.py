"""Making a committed folder out of another one's files: staging, shared names, one rename.

Invariant: the target appears whole or not at all. Files are shared (reflink, hard link, verified
copy), never rewritten; the source stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from trainer_tui.safety import durable, manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import FileEntry, Manifest
from trainer_tui.versions.check import checked_name
from trainer_tui.versions.layout import OPTIMIZER_PART


@contextlib.contextmanager
def staged(target: Path, prefix: str = "") -> Iterator[Path]:
    """A staging folder beside `target`; removed when the block fails.

    A killed process leaves it behind, to be swept by the next holder of the lock.
    """
    durable.make_directory(target.parent)
    staging = durable.staging_name(target)
    if prefix:
        staging = target.with_name(staging.name.replace(durable.STAGING_PREFIX, prefix, 1))
    try:
        durable.make_directory(staging)
        yield staging
    except BaseException:
        with contextlib.suppress(OSError):
            durable.remove_tree(staging)
        raise


def share_files(source: Path, entries: Iterable[FileEntry], target: Path) -> None:
    """Give each file a second name below `target`, and make those names durable.

    Raises:
        Corrupt: a file of the source is missing.
    """
    folders = {target}
    for entry in entries:
        path = target / checked_name(entry.name)
        durable.make_directory(path.parent)
        folders.add(path.parent)
        try:
            durable.share(source / entry.name, path)
        except FileNotFoundError:
            raise Corrupt(f"{source.name}: {entry.name} is missing") from None
    for folder in sorted(folders, reverse=True):
        durable.sync_directory(folder)


def without_optimizer(sealed: Manifest) -> Manifest:
    """The same checkpoint as weights only: it warms up again when training goes on from it."""
    return msgspec.structs.replace(
        sealed,
        files=[entry for entry in sealed.files if entry.role != "optimizer"],
        weights_only=True,
        warmup_origin=sealed.global_step,
    )


def optimizer_entries(sealed: Manifest) -> list[FileEntry]:
    return [entry for entry in sealed.files if entry.role == "optimizer"]


def stage_optimizer_part(source: Path, sealed: Manifest, staging: Path) -> None:
    """Put the optimizer into a folder of its own below `staging`, with its own manifest.

    So a version lets go of its optimizer by one rename, and stays a valid folder by itself.
    """
    part = staging / OPTIMIZER_PART
    durable.make_directory(part)
    entries = optimizer_entries(sealed)
    share_files(source, entries, part)
    own = msgspec.structs.replace(sealed, files=entries)
    durable.write_new(part / manifest.MANIFEST_NAME, manifest.seal(own), 0o400)
    durable.sync_directory(part)


def commit(staging: Path, target: Path, records: dict[str, bytes]) -> None:
    """Write the records (the manifest last), then show the folder under its final name."""
    if target.exists():
        raise FileExistsError(f"{target} exists")
    for name, data in sorted(records.items(), key=lambda pair: pair[0] == manifest.MANIFEST_NAME):
        durable.write_new(staging / name, data, 0o400)
    durable.sync_directory(staging)
    durable.rename(staging, target)
