"""A version out of a checkpoint: shared files, two manifests, a record, one rename.

Cost: one look at names and sizes, a name per file, a handful of fsyncs; nothing is read or
hashed, whatever the model's size. The hashes are those the trainer computed while it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer_tui.safety import manifest
from trainer_tui.safety.errors import Corrupt, NotFound
from trainer_tui.safety.manifest import LedgerHead, Manifest
from trainer_tui.versions import bundle, check, line, records, trained, trash
from trainer_tui.versions.layout import Layout, allocate, version_name, version_number
from trainer_tui.versions.line import Position
from trainer_tui.versions.records import FILES_LISTED, TrainedFile, Version, VersionRecord


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    checkpoint: Path
    description: str
    automatic: bool
    keep_optimizer: bool


def make(layout: Layout, wish: Wish, versions: Iterable[Version], now: str) -> int:
    """Commit a new version and return its number. Call while holding `exclusive`.

    Raises:
        NotFound: the checkpoint is gone.
        Corrupt: the checkpoint or the ledger it names is damaged.
        OSError: nothing was made.
    """
    sealed = _sound(layout, wish.checkpoint)
    existing = list(versions)
    number = allocate(layout.version_counter, _highest(layout, existing))
    name = version_name(number, now[:10].replace("-", ""))
    own = msgspec.structs.replace(
        bundle.without_optimizer(sealed), parent=wish.checkpoint.name, reason="version"
    )
    own_bytes = manifest.seal(own)
    record = _record(layout, wish, sealed, existing, number, name, now)
    own_hash = msgspec.json.decode(own_bytes, type=Manifest).sha256
    record = msgspec.structs.replace(record, hashes=own.files, manifest_sha256=own_hash)
    target = layout.versions / name
    with bundle.staged(target) as staging:
        bundle.share_files(wish.checkpoint, own.files, staging)
        if wish.keep_optimizer and not sealed.weights_only and bundle.optimizer_entries(sealed):
            bundle.stage_optimizer_part(wish.checkpoint, sealed, staging)
        files = {records.VERSION_RECORD: records.seal(record), manifest.MANIFEST_NAME: own_bytes}
        bundle.commit(staging, target, files)
    return number


def _sound(layout: Layout, checkpoint: Path) -> Manifest:
    if not checkpoint.is_dir():
        raise NotFound(f"{checkpoint.name} is gone, so no version can be made of it")
    seen = check.look(checkpoint)
    problem = seen.problem or check.known_damage(layout, checkpoint.name)
    if problem or seen.sealed is None:
        raise Corrupt(f"no version was made: {problem}", "save a new checkpoint and try again")
    return seen.sealed


def _highest(layout: Layout, existing: Iterable[Version]) -> int:
    thrown = (version_number(entry.note.name) or 0 for entry in trash.contents(layout))
    return max((*thrown, *(version.number for version in existing)), default=0)


def _record(
    layout: Layout,
    wish: Wish,
    sealed: Manifest,
    existing: list[Version],
    number: int,
    name: str,
    now: str,
) -> VersionRecord:
    here = Position(sealed.lineage, sealed.global_step)
    parent = line.nearest(existing, line.line_of(here, records.read_branches(layout)))
    files, more = _files(layout, sealed.ledger, parent)
    return VersionRecord(
        number=number,
        name=name,
        description=wish.description,
        automatic=wish.automatic,
        created_at=now,
        parent=parent.name if parent else "",
        checkpoint=wish.checkpoint.name,
        lineage=sealed.lineage,
        global_step=sealed.global_step,
        tokens=sealed.tokens,
        supervised_tokens=sealed.supervised_tokens,
        files=files,
        files_more=more,
        config_hash=sealed.config_hash,
        template_hash=sealed.template_hash,
        tokenizer_hash=sealed.tokenizer_hash,
        base_model=sealed.base_model,
        validation=sealed.validation,
        hashes=[],
        ledger=sealed.ledger,
        manifest_sha256="",
    )


def _files(
    layout: Layout, head: LedgerHead | None, parent: Version | None
) -> tuple[list[TrainedFile], bool]:
    older = parent.record.ledger if parent and parent.record else None
    entries, more = trained.since(layout.workspace.ledger, head, older, FILES_LISTED)
    return [TrainedFile.of(entry) for entry in entries], more
