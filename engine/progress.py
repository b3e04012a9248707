"""Everything that is true of the training besides the tensors: a value, replaced step by step.

Invariant: a `Progress` and the tensors captured with it at the same step boundary make an exact
resume point. It becomes true on disk only as the manifest of a committed checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from trainer_tui.engine.schedule import CoolDown
from trainer_tui.safety import clock
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import Cursor, LedgerEntry, LedgerHead, Manifest


@dataclass(frozen=True, slots=True)
class Progress:
    """`completed`: finished files that no committed ledger lists yet. `cursors`: one per started
    file that is not finished, files that were set aside included. `measured`: step and set id of
    the last look at the whole fixed set, whose loss is `validation["fixed"]`."""

    global_step: int = 0
    lineage: int = 0
    parent: str = ""
    tokens: int = 0
    supervised_tokens: int = 0
    skipped_steps: int = 0
    cursors: tuple[Cursor, ...] = ()
    completed: tuple[LedgerEntry, ...] = ()
    ledger: LedgerHead | None = None
    lr_factor: float = 1.0
    schedule_origin: int = 0
    warmup_origin: int = 0
    cool_down: CoolDown | None = None
    validation: dict[str, float] = field(default_factory=dict)
    measured: tuple[int, str] | None = None
    spent_s: dict[int, float] = field(default_factory=dict)  # seconds trained, per started job
    val_before: dict[int, float] = field(default_factory=dict)

    def cursor_of(self, job_id: int) -> Cursor | None:
        return next((c for c in self.cursors if c.job_id == job_id), None)

    def with_cursor(self, cursor: Cursor) -> Progress:
        others = tuple(c for c in self.cursors if c.job_id != cursor.job_id)
        return replace(self, cursors=(*others, cursor))

    def renamed(self, old: int, new: int) -> Progress:
        """A started file goes on as another job."""
        return replace(
            self,
            cursors=tuple(
                msgspec.structs.replace(c, job_id=new) if c.job_id == old else c
                for c in self.cursors
            ),
            spent_s={new if job == old else job: s for job, s in self.spent_s.items()},
            val_before={new if job == old else job: x for job, x in self.val_before.items()},
        )

    def after_step(
        self, cursor: Cursor, tokens: int, supervised_tokens: int, seconds: float
    ) -> Progress:
        """One optimizer step further; `cursor` already points at the next step."""
        job_id = cursor.job_id
        moved = self.with_cursor(cursor)
        return replace(
            moved,
            global_step=self.global_step + 1,
            tokens=self.tokens + tokens,
            supervised_tokens=self.supervised_tokens + supervised_tokens,
            spent_s={**self.spent_s, job_id: self.spent_s.get(job_id, 0.0) + seconds},
        )

    def after_file(self, entry: LedgerEntry) -> Progress:
        """The file is done: its cursor goes, its ledger entry waits for the next commit."""
        job_id = entry.job_id
        return replace(
            self,
            cursors=tuple(c for c in self.cursors if c.job_id != job_id),
            completed=(*self.completed, entry),
            spent_s={k: v for k, v in self.spent_s.items() if k != job_id},
            val_before={k: v for k, v in self.val_before.items() if k != job_id},
        )

    def after_commit(self, committed: Progress, head: LedgerHead | None, folder: str) -> Progress:
        """`committed` was written to `folder`; what was completed since still waits."""
        listed = {entry.job_id for entry in committed.completed}
        still = tuple(entry for entry in self.completed if entry.job_id not in listed)
        return replace(self, completed=still, ledger=head, parent=folder)


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change during a trainer's life but belongs into every manifest."""

    config_hash: str
    template_hash: str
    tokenizer_hash: str
    base_model: str
    config: dict[str, Any] = field(default_factory=dict)  # the settings behind `config_hash`


def to_manifest(progress: Progress, identity: Identity, reason: str) -> Manifest:
    """The manifest of this state; the writer fills in files and the new ledger head."""
    cool_down = progress.cool_down
    return Manifest(
        created_at=clock.now_iso(),
        global_step=progress.global_step,
        lineage=progress.lineage,
        parent=progress.parent,
        reason=reason,
        tokens=progress.tokens,
        supervised_tokens=progress.supervised_tokens,
        cursors=list(progress.cursors),
        lr_factor=progress.lr_factor,
        schedule_origin=progress.schedule_origin,
        warmup_origin=progress.warmup_origin,
        config_hash=identity.config_hash,
        template_hash=identity.template_hash,
        tokenizer_hash=identity.tokenizer_hash,
        base_model=identity.base_model,
        weights_only=False,
        ledger=progress.ledger,
        files=[],
        validation=progress.validation,
        extra={
            "skipped_steps": progress.skipped_steps,
            "cool_down": [cool_down.origin, cool_down.steps] if cool_down else None,
            "spent_s": {str(job): seconds for job, seconds in progress.spent_s.items()},
            "val_before": {str(job): x for job, x in progress.val_before.items() if _finite(x)},
            "measured": list(progress.measured) if progress.measured else None,
            "config": identity.config,
        },
    )


def _finite(value: float | None) -> bool:
    """JSON has no NaN: written as it is, it would come back as nothing."""
    return value is not None and math.isfinite(value)


def from_manifest(manifest: Manifest, folder: str) -> Progress:
    """Where the checkpoint in `folder` stands.

    Raises:
        Corrupt: its extra figures are not what we write.
    """
    extra = manifest.extra
    try:
        cool_down, measured = extra.get("cool_down"), extra.get("measured")
        before = extra.get("val_before", {})
        return Progress(
            global_step=manifest.global_step,
            lineage=manifest.lineage,
            parent=folder,
            tokens=manifest.tokens,
            supervised_tokens=manifest.supervised_tokens,
            skipped_steps=int(extra.get("skipped_steps", 0)),
            cursors=tuple(manifest.cursors),
            ledger=manifest.ledger,
            lr_factor=manifest.lr_factor,
            schedule_origin=manifest.schedule_origin,
            warmup_origin=manifest.warmup_origin,
            cool_down=CoolDown(int(cool_down[0]), int(cool_down[1])) if cool_down else None,
            validation=dict(manifest.validation),
            spent_s={int(k): float(v) for k, v in extra.get("spent_s", {}).items()},
            measured=(int(measured[0]), str(measured[1])) if measured else None,
            val_before={int(k): float(v) for k, v in before.items() if _finite(v)},
        )
    except (TypeError, ValueError, IndexError, AttributeError) as problem:
        raise Corrupt(f"{folder}: the manifest's figures make no sense: {problem}") from None
