"""Where the assistant's words stand in a rendered conversation.

Invariant: a Rendering's ranges were found by exact reconstruction (fixed text, content, fixed
text, … equals the whole rendering, character by character), or by the template's own generation
markers; otherwise the answer is a RowProblem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer_tui.data.chat_tokenizer import ChatTokenizer, TemplateRefused
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import Conversation, RowProblem

Range = tuple[int, int]
_SHAPES_KEPT = 512
_LONG_SHAPE = 200  # roles; longer ones are rare and not kept
_PER_TURN_CHARACTERS = 32 << 20
_FOLLOW_HINT = "use a template that keeps the turns as they are, or leave the row out"


@dataclass(frozen=True, slots=True)
class Rendering:
    """Text, the character ranges whose tokens the loss counts, and those that the template
    injected at the head of an answer. `alone`: an example made of one assistant turn."""

    text: str
    supervised: tuple[Range, ...]
    injected: tuple[Range, ...]
    contents: tuple[str, ...]
    alone: bool = False


class _Lost(Exception):
    """The rendering does not follow the shape."""


class SpanFinder:
    """Finds the ranges; remembers the fixed text of each sequence of roles."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shapes: dict[tuple[str, ...], list[str] | None] = {}
        self._header: str | None = None

    def find(self, row: Conversation, options: TokenOptions) -> list[Rendering] | RowProblem:
        """One rendering of the whole row, or one for each assistant turn."""
        try:
            return self._find(row, options)
        except TemplateRefused as problem:
            return RowProblem(row.line, f"the chat template refuses the row: {problem}")
        except _Lost as problem:
            return RowProblem(row.line, str(problem), _FOLLOW_HINT)

    def _find(self, row: Conversation, options: TokenOptions) -> list[Rendering]:
        messages = row.as_dicts()
        text = self._tokenizer.render(messages)
        roles = tuple(message.role for message in row.messages)
        contents = tuple(message.content for message in row.messages)
        shape = self._shape(roles)
        if shape is not None:
            places = follow(text, shape, contents)
            if places is not None:
                ranges = self._ranges(text, roles, places, shape)
                if ranges is not None:
                    return [Rendering(text, *ranges, contents)]
        if roles.count("assistant") > 1 and options.rewritten_turns == "refuse":
            raise _Lost("the chat template rewrites earlier turns of this row")
        return self._per_turn(messages)

    def _shape(self, roles: tuple[str, ...]) -> list[str] | None:
        """Fixed text before, between and after the contents; None when the template drops or
        moves one."""
        if roles not in self._shapes:
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            marks = [sentinel(at) for at in range(len(roles))]
            messages = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
            shape = cut_at(self._tokenizer.render(messages), marks)
            if len(roles) > _LONG_SHAPE:
                return shape
            self._shapes[roles] = shape
        return self._shapes[roles]

    def header(self) -> str:
        """What precedes an answer: the generation prompt; empty when the template has none."""
        if self._header is None:
            ask = [{"role": "user", "content": sentinel(0)}]
            plain = self._tokenizer.render(ask)
            prompt = self._tokenizer.render(ask, prompt=True)
            self._header = prompt[len(plain) :] if prompt.startswith(plain) else ""
        return self._header

    def stop_text(self, after: str) -> str | None:
        """`after` up to the end of its first added token: what ends a turn; None without one."""
        ends = [
            (at, -len(token))
            for token in self._tokenizer.added_texts
            if (at := after.find(token)) >= 0
        ]
        if not ends:
            return None
        at, negative_length = min(ends)
        return after[: at - negative_length]

    def _ranges(
        self, text: str, roles: tuple[str, ...], places: list[Range], shape: list[str]
    ) -> tuple[tuple[Range, ...], tuple[Range, ...]] | None:
        """Supervised and injected ranges; None when an inner turn lacks the last one's ending."""
        last_stop = self.stop_text(shape[-1])
        if last_stop is None:
            raise _Lost("the chat template ends no assistant turn with a stop token")
        supervised, injected = [], []
        for at, role in enumerate(roles):
            if role != "assistant":
                continue
            start, end = places[at]
            if not text.startswith(last_stop, end):
                return None
            supervised.append((start, end + len(last_stop)))
            extra = self._injected_length(shape[at])
            if extra:
                injected.append((start - extra, start))
        return tuple(supervised), tuple(injected)

    def _injected_length(self, before: str) -> int:
        """Length of what the template put between the answer's header and the answer."""
        header = self.header()
        at = before.rfind(header) if header else -1
        return len(before) - at - len(header) if at >= 0 else 0

    def _per_turn(self, messages: list[dict[str, str]]) -> list[Rendering]:
        ends = [at + 1 for at, message in enumerate(messages) if message["role"] == "assistant"]
        characters = sum(len(message["content"]) for message in messages)
        if len(ends) > 1 and characters * len(ends) // 2 > _PER_TURN_CHARACTERS:
            raise _Lost("the chat template rewrites earlier turns, and the row has too many")
        try:
            return [self._last_turn(messages[:end]) for end in ends]
        except _Lost:
            marked = self._by_markers(messages)
            if marked is None:
                raise
            return [marked]

    def _last_turn(self, messages: list[dict[str, str]]) -> Rendering:
        """An example that trains only the last turn, with the earlier ones as the template
        shows them then."""
        answer = messages[-1]["content"]
        mark = sentinel(0)
        text = self._tokenizer.render(messages)
        marked = self._tokenizer.render([*messages[:-1], {"role": "assistant", "content": mark}])
        parts = cut_at(marked, [mark])
        if parts is None:
            raise _Lost("the chat template drops the assistant's turn")
        before, after = parts
        _require_asked(before, messages[:-1])
        stop = self.stop_text(after)
        if stop is None:
            raise _Lost("the chat template ends no assistant turn with a stop token")
        contents = tuple(message["content"] for message in messages)
        for variant in variants(answer):
            if text == before + variant + after:
                span = (len(before), len(text) - len(after) + len(stop))
                extra = self._injected_length(before)
                injected = ((span[0] - extra, span[0]),) if extra else ()
                return Rendering(text, (span,), injected, contents, alone=True)
        prompt = self._tokenizer.render(messages[:-1], prompt=True)
        if text.startswith(prompt) and text.endswith(after):
            produced = text[len(prompt) : len(text) - len(after)]
            if self._is_answer(produced, answer):
                span = (len(prompt), len(text) - len(after) + len(stop))
                return Rendering(text, (span,), (), contents, alone=True)
        raise _Lost("the chat template loses part of the assistant's text")

    def _is_answer(self, produced: str, answer: str) -> bool:
        """Whether the model produces exactly the answer, white space aside. The header may have
        begun it already: some open the think block for the model."""
        wanted, tail = _squeezed(answer), _squeezed(produced)
        if wanted == tail:
            return True
        begun = wanted.removesuffix(tail) if tail and wanted.endswith(tail) else ""
        return bool(begun) and _squeezed(self.header()).endswith(begun)

    def _by_markers(self, messages: list[dict[str, str]]) -> Rendering | None:
        if not self._tokenizer.has_generation_markers:
            return None
        text, spans = self._tokenizer.generation_spans(messages)
        turns = sum(message["role"] == "assistant" for message in messages)
        if len(spans) != turns:
            return None
        supervised = []
        for start, end in spans:
            if self.stop_text(text[start:end]) is None:
                end += len(self.stop_text(text[end:]) or "")
            supervised.append((start, end))
        contents = tuple(message["content"] for message in messages)
        return Rendering(text, tuple(supervised), (), contents)


_SENTINEL = re.compile("Qzxj[0-9]{6,}Vkwq")


def sentinel(at: int) -> str:
    """A word no template and no row contains; letters only, so that nothing trims it."""
    return f"Qzxj{at:06d}Vkwq"


def variants(content: str) -> tuple[str, ...]:
    """How templates are known to trim a content, the faithful one first."""
    stripped = content.strip()
    if stripped == content:
        return (content,)
    found = (content, stripped, content.lstrip("\n"), content.strip("\n"), content.lstrip())
    return tuple(dict.fromkeys((*found, content.rstrip())))


def cut_at(text: str, marks: list[str]) -> list[str] | None:
    """The pieces around the marks; None unless each stands there once and in order."""
    if _SENTINEL.findall(text) != marks:
        return None
    return _SENTINEL.split(text)


def follow(text: str, shape: list[str], contents: tuple[str, ...]) -> list[Range] | None:
    """The range of each content when the text is exactly shape and contents in turn."""
    if not text.startswith(shape[0]):
        return None
    position = len(shape[0])
    places = []
    for content, fixed in zip(contents, shape[1:], strict=True):
        for variant in variants(content):
            end = position + len(variant)
            if text.startswith(variant, position) and text.startswith(fixed, end):
                break
        else:
            return None
        places.append((position, end))
        position = end + len(fixed)
    return places if position == len(text) else None


def _require_asked(before: str, messages: list[dict[str, str]]) -> None:
    """Earlier answers may be shown otherwise; what was asked may not go missing."""
    position = 0
    for message in messages:
        if message["role"] != "assistant":
            wanted = message["content"].strip()
            found = before.find(wanted, position)
            if found < 0:
                raise _Lost(f"the chat template drops or rewrites the {message['role']} message")
            position = found + len(wanted)


def _squeezed(text: str) -> str:
    return "".join(text.split())
