"""A version as a folder of its own, anywhere: real copies, proven, ready for `from_pretrained`."""

from __future__ import annotations

import os
from pathlib import Path

from trainer_tui.safety import durable, manifest
from trainer_tui.safety.errors import Corrupt, Refused
from trainer_tui.safety.manifest import FileEntry
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import bundle, check
from trainer_tui.versions.records import VERSION_RECORD


def check_target(workspace: Workspace, target: Path) -> None:
    """The workspace takes what stands in it for its own: a job, a file to train, a version.

    Raises:
        Refused: the target is not an absolute path, or lies in the workspace.
    """
    if not target.is_absolute():
        raise Refused(f"{target} is not an absolute path", "say where, from / on")
    parent = target.parent.resolve()
    # Some of these may be links to other disks.
    here = workspace
    ours = [here.root, here.inbox, here.state, here.queue, here.models, here.current_model]
    ours += [here.versions, here.emergency]
    if any(parent.is_relative_to(place.resolve()) for place in ours):
        raise Refused(
            f"{target} is inside the workspace, which would take it for its own",
            f"name a folder outside of {workspace.root.resolve()}",
        )


def export(folder: Path, target: Path, optimizer: Path | None = None) -> list[FileEntry]:
    """Copy a version to `target`, which must not exist; optionally with its optimizer part.

    Returns:
        What was copied.

    Raises:
        Refused: the target is taken or its parent is no directory.
        Corrupt: a file does not match its hash; nothing is left at the target.
    """
    if os.path.lexists(target):
        raise Refused(f"{target} exists already", "name a folder that does not exist yet")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is not a folder")
    sealed = manifest.read(folder)
    with bundle.staged(target) as staging:
        copy_files(folder, sealed.files, staging)
        records = {name: (folder / name).read_bytes() for name in _RECORDS}
        if optimizer is not None:
            part = manifest.read(optimizer)
            inner = staging / optimizer.name
            durable.make_directory(inner)
            copy_files(optimizer, part.files, inner)
            sealed_part = (optimizer / manifest.MANIFEST_NAME).read_bytes()
            durable.write_new(inner / manifest.MANIFEST_NAME, sealed_part, 0o400)
            durable.sync_directory(inner)
        bundle.commit(staging, target, records)
    return sealed.files


_RECORDS = (VERSION_RECORD, manifest.MANIFEST_NAME)


def copy_files(source: Path, entries: list[FileEntry], target: Path) -> None:
    """Copy and compare with the manifest's hashes while copying. Raises Corrupt."""
    for entry in entries:
        path = target / check.checked_name(entry.name)
        durable.make_directory(path.parent)
        fd = os.open(source / entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            digest, _ = durable.copy_hashed(fd, path, 0o400)
        finally:
            os.close(fd)
        durable.sync_directory(path.parent)
        if digest != entry.sha256:
            raise Corrupt(f"{source.name}: {entry.name} does not match its hash")
