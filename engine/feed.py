"""A job as the trainer sees it: which documents train, in which steps, from which step on.

Invariant: the plan is a pure function of what the cursor pins (file, tokens, validation set and
the options it was started with), so a resume is a seek and every kept row is seen exactly once an
epoch. Rows excluded on the way are left out when a step is served: every other row stays in its
step. Settings changed in between act on the next file. When the plan that
comes out is not the one the cursor was made for, the job is refused; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.options import TokenOptions
from trainer_tui.data.packing import PlanOptions, Step, plan_epoch, plan_key
from trainer_tui.data.row_reader import Limits
from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.token_cache import TokenFile, open_existing, open_tokens, token_key
from trainer_tui.data.validation import Split, ValidationSet, contribute, split_documents
from trainer_tui.engine import deaths, profiles
from trainer_tui.engine.profiles import Profile
from trainer_tui.engine.step import TokenMask
from trainer_tui.safety import config as settings
from trainer_tui.safety import hashing
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import DataProblem, NotFound
from trainer_tui.safety.manifest import Cursor
from trainer_tui.safety.messages import Train
from trainer_tui.safety.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Pinned:
    """The options a file was started with; kept with its cursor until it is done."""

    plan: PlanOptions
    tokens: TokenOptions
    holdout_share: float
    holdout_rows: int
    epochs: int
    behaviour: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Config) -> Pinned:
        validation = config.validation
        return cls(
            PlanOptions.from_config(config),
            TokenOptions.from_config(config),
            validation.holdout_share,
            validation.holdout_rows,
            config.epochs,
            config.behaviour.model_dump(mode="json"),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pinned:
        """Raises TypeError, KeyError: not what `as_dict` gave."""
        return cls(
            PlanOptions(**values["plan"]),
            TokenOptions(**values["tokens"]),
            float(values["holdout_share"]),
            int(values["holdout_rows"]),
            int(values["epochs"]),
            dict(values["behaviour"]),
        )


class JobRefusal(Exception):
    """This job cannot be trained; `error_class` as in `messages.JobRefused`."""

    def __init__(self, error_class: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message
        self.hint = hint


@dataclass(slots=True)
class Job:
    """An opened job. `cursor` names the step that comes next; the plan of its epoch is at hand."""

    train: Train
    tokens: TokenFile
    split: Split
    pinned: Pinned
    cursor: Cursor
    plan: list[Step]
    profile: Profile
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Documents that train, but for the excluded ones."""
        train = self.split.train
        return train[~np.isin(self.tokens.rows[train], self.cursor.rows_excluded)]

    @property
    def rows(self) -> int:
        return len(np.unique(self.tokens.rows[self.kept]))

    @property
    def token_count(self) -> int:
        return int(self.tokens.lengths[self.kept].sum())

    @property
    def supervised_count(self) -> int:
        return int(self.tokens.supervised[self.kept].sum())

    @property
    def steps_done(self) -> int:
        return self.cursor.epoch * self.cursor.steps + self.cursor.step_index

    @property
    def steps_total(self) -> int:
        return self.pinned.epochs * self.cursor.steps

    @property
    def fraction(self) -> float:
        return self.steps_done / max(self.steps_total, 1)

    @property
    def finished(self) -> bool:
        return self.cursor.epoch >= self.pinned.epochs

    def next_packs(self) -> list[list[int]]:
        """Indexes of the documents of the step under the cursor, pack by pack, the excluded ones
        left out: [] when nothing is left of it."""
        return self.packs_at(self.cursor.step_index)

    def packs_at(self, step_index: int) -> list[list[int]]:
        """Of another step of this epoch."""
        packs = self.plan[step_index]
        if self.cursor.rows_excluded:
            out = set(self.cursor.rows_excluded)
            packs = [[at for at in pack if int(self.tokens.rows[at]) not in out] for pack in packs]
        return [pack for pack in packs if pack]

    def other_documents(self, count: int) -> list[int]:
        """Up to `count` documents of a step beside the one under the cursor."""
        here = min(self.cursor.step_index, len(self.plan) - 1)
        beside = [at for at in (here - 2, here + 1, here - 1) if 0 <= at < len(self.plan)]
        for step_index in beside:
            found = [index for pack in self.packs_at(step_index) for index in pack]
            if found:
                return found[:count]
        return []

    def exclude(self, documents: Sequence[int]) -> list[int]:
        """Leave the rows of these documents out from here on; their line numbers."""
        lines = sorted({int(self.tokens.rows[index]) for index in documents})
        self.exclude_lines(lines)
        return lines

    def exclude_lines(self, lines: Sequence[int]) -> None:
        excluded = sorted({*self.cursor.rows_excluded, *lines})
        self.cursor = msgspec.structs.replace(self.cursor, rows_excluded=excluded)

    def documents(self, indexes: Sequence[int] | NDArray[np.int64]) -> list[TokenMask]:
        return [rendered(self.tokens, self.profile, int(index)) for index in indexes]

    def rows_of_step(self) -> list[int]:
        """Line numbers of the rows in the step under the cursor."""
        indexes = [index for pack in self.next_packs() for index in pack]
        return sorted({int(line) for line in self.tokens.rows[indexes]})

    def advanced(self) -> Cursor:
        """The cursor after the step under it."""
        cursor = self.cursor
        epoch, index = cursor.epoch, cursor.step_index + 1
        if index >= cursor.steps:
            epoch, index = epoch + 1, 0
        return _cursor(cursor, epoch, index)

    def seek(self, cursor: Cursor) -> None:
        """Put the cursor somewhere; another epoch has another plan (of the same length)."""
        if cursor.epoch != self.cursor.epoch and cursor.epoch < self.pinned.epochs:
            self.plan = _plan(
                self.tokens, self.split, self.train, cursor.epoch, self.pinned, self.profile
            )
        self.cursor = cursor

    def first_trained(self, count: int) -> list[int]:
        """Up to `count` documents that this epoch's steps so far have trained, earliest first."""
        done = self.plan if self.cursor.epoch else self.plan[: self.cursor.step_index]
        found: list[int] = []
        for step in done:
            found += [index for pack in step for index in pack]
            found = [at for at in found if self.tokens.rows[at] not in self.cursor.rows_excluded]
            if len(found) >= count:
                break
        return found[:count]


def rendered(tokens: TokenFile, profile: Profile, index: int) -> TokenMask:
    """A document as the profile trains and measures it."""
    document = tokens.document(index)
    if not profile.changes_documents:
        return document.ids, document.mask
    return profile.render((document.ids, document.mask), tokens.row_hash(index))


def _cursor(old: Cursor, epoch: int, step_index: int) -> Cursor:
    return Cursor(
        old.job_id,
        old.file_sha256,
        old.plan,
        epoch,
        step_index,
        old.steps,
        old.validation_set,
        old.rows_excluded,
    )


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens jobs of one workspace with one template."""

    workspace: Workspace
    config: Config
    template: ChatTemplate
    stop_id: int
    moved: Callable[[], None]

    def open(self, train: Train, cursor: Cursor | None, pinned: Pinned | None) -> Job:
        """Tokens, split and plan of a job, with the cursor where it goes on.

        Raises:
            JobRefusal: the file cannot be trained, or cannot be gone on with exactly.
            OSError: the token cache cannot be written.
        """
        try:
            return self._open(train, cursor, pinned or Pinned.from_config(self.config))
        except (DataProblem, NotFound) as problem:
            raise JobRefusal("data_error", problem.message, problem.hint) from None

    def _open(self, train: Train, cursor: Cursor | None, pinned: Pinned) -> Job:
        if cursor is not None and cursor.file_sha256 != train.file_sha256:
            raise JobRefusal(
                "data_error",
                f"{train.name} is not the file that was started under this number",
                "add it again as a new file",
            )
        data_file = self.workspace.root / train.folder / "data.jsonl"
        tokens = self._tokens(data_file, train, pinned.tokens)
        validation = self._validation(cursor, data_file, train, tokens)
        held = settings.Validation(
            holdout_share=pinned.holdout_share, holdout_rows=pinned.holdout_rows
        )
        split = split_documents(tokens, validation, held, pinned.plan.seed)
        if not len(split.train):
            raise JobRefusal("data_error", _why_empty(train, tokens, split))
        epoch = cursor.epoch if cursor is not None else 0
        profile, notes = self.profile(pinned)
        plan = _plan(tokens, split, train, epoch, pinned, profile)
        key = _key(train, tokens, validation, pinned, split, profile)
        fresh = Cursor(
            train.job_id,
            train.file_sha256,
            key,
            0,
            0,
            len(plan),
            validation.id if validation else "",
        )
        if cursor is not None and (cursor.plan, cursor.steps) != (key, len(plan)):
            raise JobRefusal(
                "plan_changed",
                f"{train.name} was started with another chat template or tokenizer, "
                f"so step {cursor.step_index} of it cannot be found again",
                "put the old base model back, or add the file again to train it from the start",
            )
        job = Job(train, tokens, split, pinned, cursor or fresh, plan, profile, notes)
        # Rows that ended earlier processes never train again, also in steps that are redone.
        job.exclude_lines(deaths.read(data_file.parent).rows)
        notes += _notes(tokens, split, job.cursor)
        return job

    def profile(self, pinned: Pinned) -> tuple[Profile, list[str]]:
        """The behaviour profile that these options name, in tokens; with notes for people."""
        tokenizer = self.template.tokenizer

        def tokenise(text: str) -> list[int]:
            return list(tokenizer.encode_batch([text])[0].ids)

        behaviour = settings.Behaviour.model_validate(pinned.behaviour)
        return profiles.build(behaviour, tokenise, self.stop_id, pinned.plan.seed)

    def _tokens(self, data_file: Path, train: Train, options: TokenOptions) -> TokenFile:
        cache = self.workspace.cache
        key = token_key(train.file_sha256, self.template, options)
        if open_existing(cache, key) is None:
            if not data_file.is_file():
                raise JobRefusal("data_error", f"{train.name}: its data.jsonl is missing")
            if hashing.hash_file(data_file) != train.file_sha256:
                raise JobRefusal(
                    "data_error",
                    f"{train.name} was changed after it was queued",
                    "add the changed file as a new one",
                )
        return open_tokens(
            data_file,
            train.file_sha256,
            self.template,
            options,
            cache,
            self.config.intake,
            cap_bytes=int(self.config.disk.cache_gb * 1e9),
            progress=self.moved,
        )

    def _validation(
        self, cursor: Cursor | None, data_file: Path, train: Train, tokens: TokenFile
    ) -> ValidationSet | None:
        folder = self.workspace.validation
        if cursor is not None:
            named = cursor.validation_set
            return ValidationSet.by_id(folder, named) if named else None
        intake = self.config.intake
        limits = Limits(intake.max_line_bytes, intake.max_file_bytes, intake.max_ratio)
        return contribute(
            folder,
            data_file,
            train.file_sha256,
            tokens,
            self.config.validation,
            self.config.seed,
            limits,
        )


def _plan(
    tokens: TokenFile, split: Split, train: Train, epoch: int, pinned: Pinned, profile: Profile
) -> list[Step]:
    lengths, options = tokens.lengths, pinned.plan
    if profile.emojis:  # they lengthen documents: what is packed is what will be run
        lengths = np.array(lengths)
        lengths[split.train] = [len(rendered(tokens, profile, at)[0]) for at in split.train]
        longest = int(lengths[split.train].max())
        options = dataclasses.replace(options, pack_tokens=max(options.pack_tokens, longest))
    return plan_epoch(lengths, split.train, train.file_sha256, epoch, options)


def _key(
    train: Train,
    tokens: TokenFile,
    validation: ValidationSet | None,
    pinned: Pinned,
    split: Split,
    profile: Profile,
) -> str:
    """Everything the plan follows from, the chosen documents themselves included."""
    named = validation.id if validation else ""
    key = plan_key(train.file_sha256, tokens.key, named, [], pinned.plan)
    chosen = split.train.astype("<i8").tobytes()
    lengthened = repr((profile.emojis, profile.omitted)).encode() if profile.emojis else b""
    return hashlib.sha256(key.encode() + chosen + lengthened).hexdigest()[:32]


def _why_empty(train: Train, tokens: TokenFile, split: Split) -> str:
    if not tokens.documents:
        return f"{train.name} has no row that can be trained"
    return (
        f"{train.name} has nothing left to train: {split.in_validation} rows are in the "
        "validation set"
    )


def _notes(tokens: TokenFile, split: Split, cursor: Cursor) -> list[str]:
    notes = []
    if split.in_validation:
        notes.append(f"{split.in_validation} rows measure (validation set) and do not train")
    if cursor.rows_excluded:
        notes.append(f"{len(cursor.rows_excluded)} rows made a step fail and are left out")
    if tokens.rejected:
        notes.append(f"{tokens.rejected} rows were rejected")
    return notes
