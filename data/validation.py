"""Rows that measure and are never trained: the fixed set of the workspace, the holdout of a file.

Invariant: a set is immutable and named by its content; it grows by being followed by a larger one,
until it has enough rows to measure by, and is frozen then: losses of two sets are not comparable,
so there are few of them and all early. A row of a set never trains while the set is in use,
wherever it comes from. The choice of rows is a pure function of their content and the seed.

On disk: `set-<sequence>-<id>/` with `rows.jsonl` and `meta.json`, committed by one rename; the
newest sequence is the one in use, so there is no pointer to lose. A person's own `validation.jsonl`
in the same folder takes the place of a built set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.options import TokenOptions
from trainer_tui.data.row_reader import Limits, read_rows
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.token_cache import TokenFile, open_tokens
from trainer_tui.safety import clock, config, durable, hashing
from trainer_tui.safety.errors import DataProblem, NotFound

USER_FILE = "validation.jsonl"
HOLDOUT_FROM_ROWS = 100
ENOUGH_ROWS = 200  # a set of this size no longer waits for the files that would make it larger


class SetMeta(msgspec.Struct, frozen=True):
    """`sources`: sha256 of each file that gave rows; of the user's file when `by_user`."""

    id: str
    sequence: int
    rows: int
    frozen: bool
    sources: list[str]
    created_at: str
    by_user: bool = False


@dataclass(frozen=True)
class ValidationSet:
    folder: Path
    meta: SetMeta

    @property
    def id(self) -> str:
        return self.meta.id

    @property
    def rows(self) -> int:
        return self.meta.rows

    @property
    def path(self) -> Path:
        return self.folder / "rows.jsonl"

    @cached_property
    def file_sha256(self) -> str:
        return hashing.hash_file(self.path)

    def conversations(self) -> Iterator[Conversation]:
        """Raises DataProblem: the set's own file was changed."""
        for row in read_rows(self.path):
            if isinstance(row, RowProblem):
                raise DataProblem(f"{self.path} was changed: line {row.line}: {row.reason}")
            yield row

    @cached_property
    def hashes(self) -> frozenset[bytes]:
        """`Conversation.identity` of every row."""
        return frozenset(row.identity() for row in self.conversations())

    def open_tokens(
        self, template: ChatTemplate, options: TokenOptions, cache: Path, intake: config.Intake
    ) -> TokenFile:
        """The set as tokens, from the cache. Raises like `token_cache.open_tokens`."""
        return open_tokens(self.path, self.file_sha256, template, options, cache, intake)

    @classmethod
    def current(cls, folder: Path) -> ValidationSet | None:
        """The set in use; None when there is none yet."""
        found = cls.all(folder)
        return found[-1] if found else None

    @classmethod
    def by_id(cls, folder: Path, set_id: str) -> ValidationSet:
        """A set that a cursor names. Raises NotFound."""
        for found in cls.all(folder):
            if found.id == set_id:
                return found
        raise NotFound(
            f"there is no validation set {set_id} in {folder}",
            "it was deleted by hand; the file it belongs to starts again from its first row",
        )

    @classmethod
    def all(cls, folder: Path) -> list[ValidationSet]:
        """Every set, oldest first. A damaged one is a DataProblem, never passed over."""
        found = []
        for entry in folder.iterdir() if folder.is_dir() else ():
            if not entry.name.startswith("set-") or not entry.is_dir():
                continue
            try:
                raw = (entry / "meta.json").read_bytes()
                found.append(cls(entry, msgspec.json.decode(raw, type=SetMeta)))
            except (OSError, msgspec.MsgspecError) as problem:
                raise DataProblem(f"validation set {entry.name} is damaged: {problem}") from None
        return sorted(found, key=lambda one: one.meta.sequence)


def contribute(
    folder: Path,
    data_file: Path,
    file_sha256: str,
    tokens: TokenFile,
    settings: config.Validation,
    seed: int,
    limits: Limits | None = None,
) -> ValidationSet | None:
    """The set in use, after this file has given rows to it if it still grows.

    The set is frozen by the first file after which it has `ENOUGH_ROWS`, or `settings.rows` when
    fewer are wanted. Called before a file's plan is made. A file gives once (calling again changes
    nothing), and never more than `share_of_file` of its rows. None when there is no set and none
    is wanted.

    Raises:
        DataProblem: the user's own validation file has a line that is not a row.
    """
    newest = adopt_user_file(folder, limits)
    enough = min(settings.rows, ENOUGH_ROWS)
    if newest is not None:
        settled = newest.meta.frozen or newest.rows >= enough
        if settled or file_sha256 in newest.meta.sources:
            return newest
    have = newest.rows if newest else 0
    missing = settings.rows - have
    chosen = choose_rows(tokens, int(settings.share_of_file * _row_count(tokens)), seed)
    known = newest.hashes if newest else frozenset()
    lines = [line for line, identity in chosen if identity not in known][: max(0, missing)]
    if not lines:
        return newest
    given = _lines_of(data_file, set(lines), limits)
    rows = [row.as_json() for row in newest.conversations()] if newest else []
    sources = [*(newest.meta.sources if newest else []), file_sha256]
    text = [*rows, *given]
    return _commit(folder, newest, text, sources, frozen=len(text) >= enough)


def adopt_user_file(folder: Path, limits: Limits | None = None) -> ValidationSet | None:
    """The set in use, which is the user's own as soon as there is a `validation.jsonl`."""
    newest = ValidationSet.current(folder)
    path = folder / USER_FILE
    if not path.is_file():
        return newest
    digest = hashing.hash_file(path)
    if newest is not None and newest.meta.by_user and newest.meta.sources == [digest]:
        return newest
    rows = []
    for row in read_rows(path, limits):
        if isinstance(row, RowProblem):
            raise DataProblem(f"{path}: line {row.line}: {row.reason}", row.hint)
        rows.append(row.as_json())
    if not rows:
        raise DataProblem(f"{path} has no rows", "put rows into it or remove it")
    return _commit(folder, newest, rows, [digest], frozen=True, by_user=True)


def _commit(
    folder: Path,
    newest: ValidationSet | None,
    rows: list[str],
    sources: list[str],
    *,
    frozen: bool,
    by_user: bool = False,
) -> ValidationSet:
    data = ("\n".join(rows) + "\n").encode()
    set_id = hashlib.sha256(data).hexdigest()[:16]
    sequence = newest.meta.sequence + 1 if newest else 1
    meta = SetMeta(set_id, sequence, len(rows), frozen, sources, clock.now_iso(), by_user)
    final = folder / f"set-{sequence:06d}-{set_id}"
    durable.make_directory(folder)
    durable.sweep_staging(folder)  # only the trainer, who holds the writer lock, adds sets
    staging = durable.staging_name(final)
    durable.make_directory(staging)
    durable.write_new(staging / "rows.jsonl", data, 0o400)
    durable.write_new(staging / "meta.json", msgspec.json.encode(meta), 0o400)
    durable.sync_directory(staging)
    durable.rename(staging, final)
    return ValidationSet(final, meta)


def _lines_of(data_file: Path, lines: set[int], limits: Limits | None) -> list[str]:
    found = []
    for row in read_rows(data_file, limits):
        if isinstance(row, Conversation) and row.line in lines:
            found.append(row.as_json())
            if len(found) == len(lines):
                break
    return found


def _row_count(tokens: TokenFile) -> int:
    return len(np.unique(tokens.rows))


def choose_rows(tokens: TokenFile, count: int, seed: int) -> list[tuple[int, bytes]]:
    """`count` rows of different content as (line, identity), by the hash of content and seed."""
    if count <= 0 or not tokens.documents:
        return []
    _, first = np.unique(tokens.row_hashes, axis=0, return_index=True)
    ranks = _rank(tokens.row_hashes[first, 0], seed)
    best = first[np.argsort(ranks, kind="stable")[:count]]
    return [(int(tokens.rows[at]), tokens.row_hash(int(at))) for at in best]


def _rank(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Another order for each seed; hashes are uniform already."""
    salt = hashlib.sha256(f"validation:{seed}".encode()).digest()
    with np.errstate(over="ignore"):
        mixed = hashes ^ np.uint64(int.from_bytes(salt[:8], "little"))
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(29))


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Document indexes, ascending. `in_validation`: rows withheld because the fixed set has
    them; `excluded`: rows withheld because they were found to be poison."""

    train: NDArray[np.int64]
    holdout: NDArray[np.int64]
    in_validation: int
    excluded: int


def split_documents(
    tokens: TokenFile,
    validation: ValidationSet | None,
    settings: config.Validation,
    seed: int,
    excluded_rows: Sequence[int] = (),
) -> Split:
    """Which documents of a file train and which are its holdout. Every other document is counted.

    A duplicate of a holdout row does not train either.
    """
    known = validation.hashes if validation else frozenset()
    withheld = _among(tokens.row_hashes, known)
    bad = np.isin(tokens.rows, np.asarray(list(excluded_rows), dtype=np.int64))
    free = ~(withheld | bad)
    count = holdout_count(len(np.unique(tokens.rows[free])), settings)
    chosen: set[bytes] = set()
    if count:
        wanted = count + len(known) + len(excluded_rows)
        for line, identity in choose_rows(tokens, wanted, seed + 1):
            if len(chosen) < count and identity not in known and line not in excluded_rows:
                chosen.add(identity)
    held = _among(tokens.row_hashes, chosen) & free
    return Split(
        train=np.flatnonzero(free & ~held).astype(np.int64),
        holdout=np.flatnonzero(held).astype(np.int64),
        in_validation=len(np.unique(tokens.rows[withheld])),
        excluded=len(np.unique(tokens.rows[bad])),
    )


def holdout_count(rows: int, settings: config.Validation) -> int:
    """Rows of the holdout: `holdout_share`, at least `holdout_rows`; none for a small file."""
    if rows < HOLDOUT_FROM_ROWS or not (settings.holdout_share or settings.holdout_rows):
        return 0
    return min(rows // 2, max(round(settings.holdout_share * rows), settings.holdout_rows))


def _among(hashes: NDArray[np.uint64], wanted: Iterable[bytes]) -> NDArray[Any]:
    """bool [documents]: whose 16 bytes are in `wanted`."""
    listed = sorted(wanted)
    if not listed or not len(hashes):
        return np.zeros(len(hashes), dtype=np.bool_)
    table = np.frombuffer(b"".join(listed), dtype="<u8").reshape(-1, 2)
    likely = np.flatnonzero(np.isin(hashes[:, 0], table[:, 0]))
    found = np.zeros(len(hashes), dtype=np.bool_)
    exact = frozenset(listed)
    for at in likely.tolist():
        found[at] = hashes[at].tobytes() in exact
    return found
