"""Whether a chat template can be trained on: asked once, before the first row.

A template passes when it keeps every turn, ends assistant turns with a token of the vocabulary,
and that token is supervised in the tokens that training would really use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_tui.data.chat_tokenizer import TemplateRefused
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import Conversation, Message
from trainer_tui.data.spans import SpanFinder, cut_at, sentinel
from trainer_tui.safety.errors import DataProblem

if TYPE_CHECKING:
    from trainer_tui.data.template import ChatTemplate, TemplateReport

_FIX = "put another chat_template.jinja into the base model's folder"


def check(template: ChatTemplate) -> TemplateReport:
    """See `ChatTemplate.check`. Raises DataProblem."""
    from trainer_tui.data.template import TemplateReport

    tokenizer = template.tokenizer
    finder = SpanFinder(tokenizer)
    before, after = _turns_kept(template)
    stop = finder.stop_text(after)
    if stop is None:
        raise DataProblem(
            "the chat template ends assistant turns without a stop token, so the model would "
            "never learn to stop",
            f"{_FIX} that writes the end-of-turn token after each answer",
        )
    stop_id = _stop_id(template, stop)
    _stop_is_supervised(template, stop_id)
    header = finder.header()
    injected = before[before.rfind(header) + len(header) :] if header in before else ""
    notes = []
    if injected:
        notes.append(
            f"the chat template adds {injected!r} to the last answer; kept out of the loss "
            'unless intake.injected_tokens = "train"'
        )
    if tokenizer.stop_ids and stop_id not in tokenizer.stop_ids:
        notes.append(
            f"the model's config stops at other tokens than {stop.strip()!r}, which the template "
            "trains; add its id to eos_token_id where you generate"
        )
    if tokenizer.pad_id == stop_id:
        notes.append(
            "the pad token is also the end of a turn; it stays in the loss here, because masks "
            "come from the template, never from token ids"
        )
    if tokenizer.tells_the_day:
        notes.append("the chat template writes today's date; rows get 26 July 2024 instead")
    system = _keeps_system(template, notes)
    return TemplateReport(stop, stop_id, header, injected, system, tuple(notes))


def _turns_kept(template: ChatTemplate) -> tuple[str, str]:
    """Fixed text before and after the last answer of a conversation of two exchanges."""
    marks = [sentinel(at) for at in range(4)]
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
    try:
        text = template.tokenizer.render(messages)
    except TemplateRefused as problem:
        raise DataProblem(
            f"the chat template fails on a plain conversation: {problem}", _FIX
        ) from None
    pieces = cut_at(text, marks)
    if pieces is None:
        missing = [f"{roles[at]} turn {at // 2 + 1}" for at in range(4) if marks[at] not in text]
        what = f"drops {', '.join(missing)}" if missing else "repeats or reorders turns"
        raise DataProblem(f"the chat template {what} of a conversation of two exchanges", _FIX)
    return pieces[3], pieces[4]


def _stop_id(template: ChatTemplate, stop: str) -> int:
    for text, token_id in template.tokenizer.added_texts.items():
        if stop.endswith(text) and token_id < template.tokenizer.vocabulary:
            return token_id
    raise AssertionError("stop_text ends with an added token")


def _stop_is_supervised(template: ChatTemplate, stop_id: int) -> None:
    turns = tuple(
        Message(role, text)
        for role, text in (
            ("user", "one"),
            ("assistant", "two"),
            ("user", "three"),
            ("assistant", "four"),
        )
    )
    row = template.encode_batch([Conversation(turns)], TokenOptions(max_length=1 << 30))[0]
    if row.problem is not None:
        raise DataProblem(row.problem.reason, row.problem.hint or _FIX)
    supervised = sum(int((d.ids[d.mask] == stop_id).sum()) for d in row.documents)
    if supervised < 2:
        raise DataProblem(
            f"the end-of-turn token is in the loss {supervised} times where two answers were given",
            _FIX,
        )


def _keeps_system(template: ChatTemplate, notes: list[str]) -> bool:
    marks = [sentinel(at) for at in range(3)]
    roles = ("system", "user", "assistant")
    messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
    try:
        text = template.tokenizer.render(messages)
    except TemplateRefused as problem:
        notes.append(
            f"the chat template refuses system messages ({problem}); such rows are rejected"
        )
        return False
    if marks[0] not in text:
        notes.append("the chat template drops system messages; such rows are rejected")
        return False
    return True
