"""From a conversation to tokens and mask, derived from the model's own chat template.

The mask: all assistant turns and the token that ends each; nothing else. Where a turn stands in
the text is found by rendering the conversation's shape with a unique sentinel for each content
and requiring that sentinels swapped for contents give exactly the text of the real rendering.
Where that fails (the template rewrites earlier turns, as for think blocks), each assistant turn
becomes an example of its own, or the row is refused; never a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.chat_tokenizer import ChatTokenizer, Encoded
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.spans import Rendering, SpanFinder
from trainer_tui.safety.errors import DataProblem


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """`ids`: int32 [tokens]. `mask`: bool [tokens], True where the loss counts the token as a
    target; the first token is never a target."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]

    @property
    def supervised(self) -> int:
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """What became of one row. `tokens` and `supervised` are the row's own, before a policy for
    long rows; `documents` is what will be trained and may be empty."""

    conversation: Conversation
    documents: tuple[Document, ...]
    problem: RowProblem | None = None
    tokens: int = 0
    supervised: int = 0
    over_length: bool = False
    per_turn: bool = False
    injected_tokens: int = 0
    control_tokens: int = 0
    double_bos: bool = False


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """What `check` found: `stop_text` ends a turn; `notes` are sentences for people."""

    stop_text: str
    stop_id: int
    header: str
    injected: str
    system: bool
    notes: tuple[str, ...]


class ChatTemplate:
    """A model's template and tokenizer as training uses them."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokenizer_hash = tokenizer.tokenizer_hash
        self.template_hash = tokenizer.template_hash
        self._spans = SpanFinder(tokenizer)

    @classmethod
    def load(cls, model_folder: Path) -> ChatTemplate:
        """Raises DataProblem: the folder has no usable tokenizer or template."""
        return cls(ChatTokenizer.load(model_folder))

    def encode(self, conversation: Conversation, options: TokenOptions) -> list[Document]:
        """The documents of one row; empty when a policy drops it (too long, nothing supervised).

        Raises:
            DataProblem: the row cannot be rendered or followed.
        """
        row = self.encode_batch([conversation], options)[0]
        if row.problem is not None:
            raise DataProblem(f"line {row.problem.line}: {row.problem.reason}", row.problem.hint)
        return list(row.documents)

    def encode_batch(
        self, conversations: Sequence[Conversation], options: TokenOptions
    ) -> list[EncodedRow]:
        """The same for many rows, tokenised on all cores; a bad row is a problem, not a raise."""
        found = [self._spans.find(conversation, options) for conversation in conversations]
        texts = [r.text for f in found if not isinstance(f, RowProblem) for r in f]
        encoded = iter(self.tokenizer.encode_batch(texts, enough=options.max_length))
        rows = []
        for conversation, renderings in zip(conversations, found, strict=True):
            if isinstance(renderings, RowProblem):
                rows.append(EncodedRow(conversation, (), renderings))
                continue
            pairs = [(rendering, next(encoded)) for rendering in renderings]
            rows.append(self._finish(conversation, pairs, options))
        return rows

    def _finish(
        self,
        conversation: Conversation,
        pairs: list[tuple[Rendering, Encoded]],
        options: TokenOptions,
    ) -> EncodedRow:
        documents, tokens, supervised, injected, control = [], 0, 0, 0, 0
        for rendering, encoded in pairs:
            document, extra = _document(rendering, encoded, options)
            documents.append(document)
            counted = _counted(document, rendering, encoded)
            tokens, supervised = tokens + counted[0], supervised + counted[1]
            injected += extra
            control += self._control_tokens(rendering)
        first = documents[0].ids
        bos = self.tokenizer.bos_id
        over = any(len(document.ids) > options.max_length for document in documents)
        kept = self._fit(conversation, documents, options) if over else documents
        return EncodedRow(
            conversation,
            tuple(document for document in kept if document.mask.any()),
            tokens=tokens,
            supervised=supervised,
            over_length=over,
            per_turn=len(documents) > 1 or pairs[0][0].alone,
            injected_tokens=injected,
            control_tokens=control,
            double_bos=len(first) > 1 and first[0] == first[1] == bos,
        )

    def _control_tokens(self, rendering: Rendering) -> int:
        """Added tokens that come from a message's own text, where only words belong."""
        return sum(
            text.count(token)
            for text in rendering.contents
            if "<" in text or "[" in text
            for token in self.tokenizer.added_texts
            if token in text
        )

    def _fit(
        self, conversation: Conversation, documents: list[Document], options: TokenOptions
    ) -> list[Document]:
        match options.long_rows:
            case "drop":
                return [d for d in documents if len(d.ids) <= options.max_length]
            case "truncate":
                cut = options.max_length
                return [Document(d.ids[:cut], d.mask[:cut]) for d in documents]
            case "split_turns":
                return self._split(conversation, options)

    def _split(self, conversation: Conversation, options: TokenOptions) -> list[Document]:
        """Windows of whole exchanges, each led by the system message, as long as they fit."""
        messages = conversation.messages
        system = messages[:1] if messages[0].role == "system" else ()
        turns = messages[len(system) :]
        exchanges = [turns[at : at + 2] for at in range(0, len(turns), 2)]
        alone = replace(options, long_rows="drop")

        def window(start: int, end: int) -> list[Document] | None:
            shown = system + tuple(itertools.chain.from_iterable(exchanges[start:end]))
            row = self.encode_batch([Conversation(shown, conversation.line)], alone)[0]
            return None if row.problem or row.over_length else list(row.documents)

        return windows(len(exchanges), window)

    def check(self) -> TemplateReport:
        """Whether this template can be trained on at all.

        Raises:
            DataProblem: it never trains a stop token, drops turns, or cannot be followed.
        """
        from trainer_tui.data.template_check import check

        return check(self)


def windows(count: int, window: Callable[[int, int], list[Document] | None]) -> list[Document]:
    """Cut `range(count)` into the fewest runs that fit, from the left.

    Args:
        window: the documents of [start, end), None when they do not fit. An item that does not
            fit alone is left out. Asked O(log n) times a run: doubling, then halving.
    """
    documents: list[Document] = []
    start = 0
    while start < count:
        fits, too_many, best = start, count + 1, list[Document]()
        reach = 1
        while fits + 1 < too_many:
            end = min(start + reach, count) if too_many > count else (fits + too_many) // 2
            found = window(start, end)
            if found is None:
                too_many = end
            else:
                fits, best = end, found
                reach *= 2
                if end == count:
                    break
        documents += best
        start = max(fits, start + 1)
    return documents


def _counted(document: Document, rendering: Rendering, encoded: Encoded) -> tuple[int, int]:
    """Tokens and supervised tokens of the whole text; estimated where only its beginning was
    tokenised."""
    tokens = len(document.ids)
    if encoded.characters >= len(rendering.text):
        return tokens, document.supervised
    tokens = round(tokens * len(rendering.text) / encoded.characters)
    characters = sum(end - start for start, end in rendering.supervised)
    return tokens, round(tokens * characters / len(rendering.text))


def _document(
    rendering: Rendering, encoded: Encoded, options: TokenOptions
) -> tuple[Document, int]:
    """Tokens and mask of one rendering, and how many supervised-looking tokens were injected."""
    ids = np.asarray(encoded.ids, dtype=np.int32)
    mask = np.zeros(len(ids), dtype=np.bool_)
    for start, end in rendering.supervised:
        first, last = encoded.tokens_of(start, end)
        mask[first:last] = True
    extra = 0
    for start, end in rendering.injected:
        first, last = encoded.tokens_of(start, end)
        extra += int(np.count_nonzero(~mask[first:last]))
        if options.injected_tokens == "train":
            mask[first:last] = True
    if len(mask):
        mask[0] = False  # nothing precedes it, so nothing predicts it
    return Document(ids, mask), extra
