"""The next job's number: one that no job ever had, also after the note of it was lost.

A number that came back would be taken for the job that had it: the ledger says of that one that
it is trained, the trash and the undo log that it can be brought back.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from trainer_tui.queue.job import parse_directory_name
from trainer_tui.queue.scan import Finding
from trainer_tui.safety import state_file
from trainer_tui.safety.state_file import Unusable
from trainer_tui.safety.workspace import Workspace

NEXT_ID_NAME = "next_id"
MAX_DIGITS = 18  # a directory's name has room for one more


class _Entry(msgspec.Struct):
    job_id: int


class _Segment(msgspec.Struct):
    entries: list[_Entry]


_segment_decoder = msgspec.json.Decoder(_Segment)


def next_id(workspace: Workspace, known: Iterable[int]) -> tuple[int, Finding | None]:
    """The number, and what was wrong with the note of it.

    Args:
        known: the numbers that the queue has.
    """
    highest = max(known, default=0)
    note = workspace.queue / NEXT_ID_NAME
    finding = None
    try:
        stored = state_file.read(note, _number)
        if not isinstance(stored, Unusable):
            return max(stored, highest + 1), None
        aside = state_file.set_aside(note)
        text = f"{stored.text}{aside}; numbers go on above every known one"
        finding = Finding("damaged", 0, text)
    except FileNotFoundError:
        pass  # a new queue, or somebody deleted it
    return max([highest, *_in_trash(workspace), *_in_ledger(workspace)]) + 1, finding


def _number(data: bytes) -> int:
    """Raises ValueError."""
    text = data.strip()
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise ValueError("it is no number")
    return int(text)


def _in_trash(workspace: Workspace) -> Iterable[int]:
    for path in workspace.trash.glob("job.*"):
        name = parse_directory_name(path.name.split(".", 2)[-1])
        if name is not None:
            yield name.id


def _in_ledger(workspace: Workspace) -> Iterable[int]:
    """Of every segment that can be read: trained jobs."""
    for path in workspace.ledger.glob("*.json"):
        found = state_file.read(path, _segment_decoder.decode)
        if not isinstance(found, Unusable):
            yield from (entry.job_id for entry in found.entries)
