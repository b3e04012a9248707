"""Which rows make a step fail: bisection over its documents, by trials that move no weight.

Invariant: a row is found guilty only when a trial with nothing but its documents fails, and the
rest of the step, or documents of another step, do not fail beside it. A fault of the weights or
of the program fails with any documents, so it excludes nothing.

Where a failed trial raises or gives a NaN it runs in the trainer itself (`suspects.py`); where it
ends the process, in another one (`hunt.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Fails = Callable[[Sequence[int]], bool]
GUILTY_OF_A_STEP = 4  # more than this is no poison row but a file that should not be trained
GUILTY_OF_A_FILE = 8  # or 1 % of its rows when that is more


class NotTheRows(Exception):
    """The step fails whatever documents are in it, or only when they are together."""


def find_guilty(documents: Sequence[int], fails: Fails, reference: Sequence[int]) -> list[int]:
    """The documents that fail by themselves; none when the step does not fail again at all.

    Args:
        documents: of the step that failed, by index.
        fails: whether a step with just these would fail, now.
        reference: documents of another step, for a step in which every document is guilty.

    Raises:
        NotTheRows: no document can be blamed.
    """
    if not fails(documents):
        return []
    guilty = _narrow(documents, fails, GUILTY_OF_A_STEP)
    rest = [document for document in documents if document not in guilty] or list(reference)
    if not guilty or not rest or fails(rest):
        raise NotTheRows
    return guilty


def _narrow(documents: Sequence[int], fails: Fails, limit: int) -> list[int]:
    """`documents` fail together; which of them fail alone. Raises NotTheRows past the limit."""
    if len(documents) == 1:
        return list(documents)
    middle = len(documents) // 2
    found: list[int] = []
    for half in (documents[:middle], documents[middle:]):
        if fails(half):
            found += _narrow(half, fails, limit)
        if len(found) > limit:
            raise NotTheRows
    return found


def too_many(excluded: int, rows: int) -> bool:
    """Whether so many rows of a file are poison that the file itself is to blame."""
    return excluded > max(GUILTY_OF_A_FILE, rows // 100)
