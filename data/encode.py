"""A file's rows as tokens, in order, in flat memory: what report, cache and training all read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.data.options import TokenOptions
from trainer_tui.data.row_reader import Counts, Limits, read_rows
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.template import ChatTemplate, EncodedRow
from trainer_tui.safety import config

BATCH_ROWS = 512
BATCH_CHARACTERS = 1 << 19  # about 130,000 tokens, of about 250 bytes each while they are made


def limits_of(intake: config.Intake) -> Limits:
    return Limits(intake.max_line_bytes, intake.max_file_bytes, intake.max_ratio)


def encode_file(
    path: Path,
    template: ChatTemplate,
    options: TokenOptions,
    intake: config.Intake,
    counts: Counts | None = None,
) -> Iterator[EncodedRow | RowProblem]:
    """Every line that is not blank: its tokens, or why it has none, in the file's order.

    Raises:
        DataProblem: the file as a whole cannot be read as rows.
    """
    rows = read_rows(path, limits_of(intake), counts)
    return encode_rows(rows, template, options)


def encode_rows(
    rows: Iterator[Conversation | RowProblem], template: ChatTemplate, options: TokenOptions
) -> Iterator[EncodedRow | RowProblem]:
    """The same for rows at hand. While one batch is looked at, the next is being tokenised."""
    with ThreadPoolExecutor(1, "tokenise") as pool:
        before: _Batch | None = None
        for batch in _batches(rows):
            good = [row for row in batch if isinstance(row, Conversation)]
            ahead = _Batch(batch, pool.submit(template.encode_batch, good, options))
            if before is not None:
                yield from before.results()
            before = ahead
        if before is not None:
            yield from before.results()


def _batches(
    rows: Iterator[Conversation | RowProblem],
) -> Iterator[list[Conversation | RowProblem]]:
    """Bounded in rows and in characters."""
    batch: list[Conversation | RowProblem] = []
    characters = 0
    for row in rows:
        batch.append(row)
        if isinstance(row, Conversation):
            characters += sum(len(message.content) for message in row.messages)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows and problems in the file's order, and the future of the rows' tokens."""

    rows: list[Conversation | RowProblem]
    encoded: Future[list[EncodedRow]]

    def results(self) -> Iterator[EncodedRow | RowProblem]:
        encoded = iter(self.encoded.result())
        for row in self.rows:
            if isinstance(row, RowProblem):
                yield row
                continue
            found = next(encoded)
            yield found.problem or found
