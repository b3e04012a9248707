"""Counting a file row by row, in memory that hardly grows: what the data report is made of."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.chat_tokenizer import ChatTokenizer
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.template import EncodedRow
from trainer_tui.queue.secrets import find_secret

REMEMBERED_ROWS = 4_000_000  # duplicates are looked for among so many (64 MB)
REJECTS_KEPT = 100_000
SAMPLES = 5
SAMPLE_TOKENS = 400


class Reject(msgspec.Struct, frozen=True):
    """One line of `rejects.jsonl`. `kind`: invalid | too_long | unsupervised."""

    line: int
    kind: str
    reason: str
    hint: str = ""


class Run(msgspec.Struct, frozen=True):
    """Neighbouring tokens of a sample with the same mask."""

    text: str
    supervised: bool


class Sample(msgspec.Struct, frozen=True):
    line: int
    tokens: int
    supervised: int
    runs: list[Run]


class Secret(msgspec.Struct, frozen=True):
    line: int
    kind: str


@dataclass(slots=True)
class Tally:
    """Everything counted. `lengths` are the documents' that will be trained; `all_lengths` every
    valid row's, long ones included."""

    rows: int = 0
    invalid: int = 0
    kept: int = 0
    over_length: int = 0
    unsupervised: int = 0
    tokens: int = 0
    supervised: int = 0
    whole_supervised: int = 0
    injected: int = 0
    injected_rows: int = 0
    per_turn_rows: int = 0
    control_rows: int = 0
    double_bos_rows: int = 0
    in_validation: int = 0
    longest: int = 0
    lengths: array[int] = field(default_factory=lambda: array("i"))
    all_lengths: array[int] = field(default_factory=lambda: array("i"))
    identities: array[int] = field(default_factory=lambda: array("Q"))
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    reasons: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def reject(self, problem: RowProblem) -> None:
        """A line that is no row."""
        self.rows += 1
        self.invalid += 1
        self._rejected(Reject(problem.line, "invalid", problem.reason, problem.hint))

    def _rejected(self, reject: Reject) -> None:
        self.reasons[_general(reject.reason)] += 1
        if len(self.rejects) < REJECTS_KEPT:
            self.rejects.append(reject)

    def row(self, row: Conversation, validation: frozenset[bytes]) -> None:
        """What can be said of a valid row without tokens."""
        self.rows += 1
        identity = row.identity()
        if identity in validation:
            self.in_validation += 1
        if len(self.identities) < REMEMBERED_ROWS:
            self.identities.append(int.from_bytes(identity[:8], "little"))
            self.prompts.append(int.from_bytes(row.prompt_identity()[:8], "little"))
        for message in row.messages:
            kind = find_secret(message.content)
            if kind is not None and len(self.secrets) < 1000:
                self.secrets.append(Secret(row.line, kind))
                break

    def encoded(self, row: EncodedRow, tokenizer: ChatTokenizer, max_length: int) -> None:
        """What its tokens say; `row` was called for it before."""
        self.whole_supervised += row.supervised
        self.longest = max(self.longest, row.tokens)
        self.all_lengths.append(row.tokens)
        self.injected += row.injected_tokens
        self.injected_rows += row.injected_tokens > 0
        self.per_turn_rows += row.per_turn and len(row.documents) > 1
        self.control_rows += row.control_tokens > 0
        self.double_bos_rows += row.double_bos
        line = row.conversation.line
        if row.over_length:
            self.over_length += 1
        if row.documents:
            self.kept += 1
            for document in row.documents:
                self.lengths.append(len(document.ids))
                self.tokens += len(document.ids)
                self.supervised += document.supervised
            if len(self.samples) < SAMPLES:
                self.samples.append(_sample(row, tokenizer))
        elif row.over_length:
            reason = f"{row.tokens} tokens, longer than max_length {max_length}"
            self._rejected(Reject(line, "too_long", reason))
        else:
            self.unsupervised += 1
            self._rejected(Reject(line, "unsupervised", "no token of it would be trained"))

    def duplicates(self) -> int:
        """Rows whose content an earlier row of the file has."""
        hashes = np.frombuffer(self.identities, dtype=np.uint64)
        return len(hashes) - len(np.unique(hashes))

    def conflicts(self) -> int:
        """Prompts with more than one answer."""
        if not self.prompts:
            return 0
        pairs = np.stack(
            (
                np.frombuffer(self.prompts, dtype=np.uint64),
                np.frombuffer(self.identities, dtype=np.uint64),
            ),
            axis=1,
        )
        different = np.unique(pairs, axis=0)
        _, counts = np.unique(different[:, 0], return_counts=True)
        return int(np.count_nonzero(counts > 1))

    def trained_before(self, trained: NDArray[np.uint64]) -> int:
        """Rows of the file whose content is in `trained` (sorted first 8 bytes of identities)."""
        mine = np.frombuffer(self.identities, dtype=np.uint64)
        if not len(trained) or not len(mine):
            return 0
        at = np.minimum(np.searchsorted(trained, mine), len(trained) - 1)
        return int(np.count_nonzero(trained[at] == mine))


def _general(reason: str) -> str:
    """A reason without its numbers, to count like ones together."""
    words = [("N" if word.strip("():,").isdigit() else word) for word in reason.split()]
    return " ".join(words)[:120]


def _sample(row: EncodedRow, tokenizer: ChatTokenizer) -> Sample:
    document = row.documents[0]
    ids, mask = document.ids[:SAMPLE_TOKENS], document.mask[:SAMPLE_TOKENS]
    edges = np.flatnonzero(np.diff(mask)) + 1
    starts = [0, *edges.tolist(), len(ids)]
    runs = [
        Run(tokenizer.decode(ids[start:end].tolist()), bool(mask[start]))
        for start, end in itertools.pairwise(starts)
    ]
    return Sample(row.conversation.line, len(document.ids), document.supervised, runs)
