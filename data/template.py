"""From a conversation to tokens and mask, derived from the model's own chat template.

The mask: all assistant turns and the token that ends each; nothing else. Where a turn stands in
the text is found by rendering the conversation's shape with a unique sentinel for each content
and requiring that sentinels swapped for contents give exactly the text of the real rendering.
Where that fails (the template rewrites earlier turns, as for think blocks), each assistant turn
becomes an example of its own, or the row is refused; never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        encoded = iter(self.tokenizer.encode_batch(texts))
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
        documents, injected, control = [], 0, 0
        for rendering, encoded in pairs:
            document, extra = _document(rendering, encoded, options)
            documents.append(document)
            injected += extra
            control += self._control_tokens(rendering)
        first = documents[0].ids
        bos = self.tokenizer.bos_id
        over = any(len(document.ids) > options.max_length for document in documents)
        kept = self._fit(conversation, documents, options) if over else documents
        return EncodedRow(
            conversation,
            tuple(document for document in kept if document.mask.any()),
            tokens=sum(len(document.ids) for document in documents),
            supervised=sum(document.supervised for document in documents),
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
        whole = _with_lengths_unlimited(options)
        documents: list[Document] = []
        start = 0
        while start < len(exchanges):
            best: tuple[int, list[Document]] | None = None
            for end in range(start + 1, len(exchanges) + 1):
                window = system + sum(exchanges[start:end], ())
                row = self.encode_batch([Conversation(window, conversation.line)], whole)[0]
                if row.problem or any(len(d.ids) > options.max_length for d in row.documents):
                    break
                best = end, list(row.documents)
            if best is None:  # this exchange alone is too long: it is left out
                start += 1
                continue
            start, fitting = best
            documents += fitting
        return documents

    def check(self) -> TemplateReport:
        """Whether this template can be trained on at all.

        Raises:
            DataProblem: it never trains a stop token, drops turns, or cannot be followed.
        """
        from trainer_tui.data.template_check import check

        return check(self)


def _with_lengths_unlimited(options: TokenOptions) -> TokenOptions:
    return TokenOptions(
        max_length=1 << 40,
        long_rows="drop",
        injected_tokens=options.injected_tokens,
        rewritten_turns=options.rewritten_turns,
    )


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
