"""A file's rows as tokens, in order, in flat memory: what report, cache and training all read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer_tui.data.options import TokenOptions
from trainer_tui.data.row_reader import Counts, Limits, read_rows
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.template import ChatTemplate, EncodedRow
from trainer_tui.safety import config

BATCH_ROWS = 512
BATCH_CHARACTERS = 4 << 20


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
    """The same for rows at hand; batches are bounded in rows and in characters."""
    batch: list[Conversation | RowProblem] = []
    characters = 0
    for row in rows:
        batch.append(row)
        if isinstance(row, Conversation):
            characters += sum(len(message.content) for message in row.messages)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield from _encode(batch, template, options)
            batch, characters = [], 0
    yield from _encode(batch, template, options)


def _encode(
    batch: list[Conversation | RowProblem], template: ChatTemplate, options: TokenOptions
) -> Iterator[EncodedRow | RowProblem]:
    good = [row for row in batch if isinstance(row, Conversation)]
    encoded = iter(template.encode_batch(good, options))
    for row in batch:
        if isinstance(row, RowProblem):
            yield row
            continue
        found = next(encoded)
        yield found.problem or found
