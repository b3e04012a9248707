"""What a row is: one line of JSON with `messages`, checked, or one sentence why it is not a row.

Invariant: a line gives exactly one of Conversation and RowProblem (a blank line gives nothing), and
no line, however hostile, raises. Pure: bytes in, value out; files are read by `row_reader`.
Limits: text only; roles system, user, assistant; system first; then user and assistant by turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

ROLES = ("system", "user", "assistant")
_KNOWN_ROW_KEYS = frozenset({"messages"})
_KNOWN_MESSAGE_KEYS = frozenset({"role", "content"})


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row. `line` is its line in the file, from 1; two rows of like content are unequal."""

    messages: tuple[Message, ...]
    line: int = 0

    def identity(self) -> bytes:
        """16 bytes that depend on roles and contents alone: the row's identity everywhere."""
        return identity(self.messages)

    def prompt_identity(self) -> bytes:
        """The same for everything before the last assistant turn."""
        return identity(self.messages[:-1])

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as `apply_chat_template` wants them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def as_json(self) -> str:
        """One canonical line, without the newline; parses back to the same identity."""
        return json.dumps({"messages": self.as_dicts()}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a line is no row: `reason` is a sentence's worth, `hint` what to do; may be empty."""

    line: int
    reason: str
    hint: str = ""


@dataclass(slots=True)
class ExtraKeys:
    """Keys that are ignored, each with the line where it was seen first."""

    first_line: dict[str, int] = field(default_factory=dict)

    def see(self, key: str, line: int) -> None:
        if len(self.first_line) < 100:
            self.first_line.setdefault(key[:80], line)


def identity(messages: tuple[Message, ...]) -> bytes:
    """blake2b over length-prefixed roles and contents, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        content = message.content.encode()
        digest.update(f"{message.role}:{len(content)}:".encode())
        digest.update(content)
    return digest.digest()


class _Reject(Exception):
    """Raised only inside this file, to leave the JSON parser or a check early."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def parse_line(raw: bytes, line: int, extra: ExtraKeys | None = None) -> Conversation | RowProblem:
    """Check one line (without its newline; a trailing CR and white space are fine).

    Args:
        raw: the bytes of a line that is not blank.
        line: its number, for the result.
        extra: collects keys that are ignored.
    """
    try:
        value = _decode(raw)
        return Conversation(_messages(value, line, extra), line)
    except _Reject as problem:
        return RowProblem(line, problem.reason, problem.hint)


def _decode(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        if _looks_like_utf16(raw):
            raise _Reject(*UTF16) from None
        where = f"byte {problem.start + 1} (0x{raw[problem.start]:02x})"
        raise _Reject(f"not UTF-8 at {where}", "save the file as UTF-8") from None
    if "\x00" in text:
        if _looks_like_utf16(raw):
            raise _Reject(*UTF16)
        raise _Reject("holds NUL bytes", "the file was damaged or is not text; copy it again")
    try:
        return _DECODER.decode(text.strip(" \t\r\n\ufeff"))
    except json.JSONDecodeError as problem:
        raise _Reject(*_explain_json(problem, text)) from None
    except RecursionError:
        raise _Reject("JSON nested too deeply", "a row is {messages: [{role, content}]}") from None


UTF16 = ("UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8 IN.jsonl > OUT.jsonl")


def _looks_like_utf16(raw: bytes) -> bool:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    sample = raw[:200]
    fewer, more = sorted((sample[0::2].count(0), sample[1::2].count(0)))
    return len(sample) >= 4 and more > len(sample) // 4 and fewer < len(sample) // 8


def _explain_json(problem: json.JSONDecodeError, text: str) -> tuple[str, str]:
    if problem.msg == "Extra data":
        return "more than one JSON value on the line", "put each row on a line of its own"
    if problem.msg.startswith("Unterminated") or problem.pos >= len(text.rstrip()):
        return "the JSON ends too early", "a row must stand on one line, with newlines as \\n"
    if problem.msg.startswith("Invalid control"):
        return "a control character inside a string", "write it escaped, such as \\n or \\t"
    return f"not JSON: {problem.msg} at character {problem.pos + 1}", ""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Reject(f"the key {_short(key)} stands twice in one object")
            seen.add(key)
    return value


def _no_constant(name: str) -> NoReturn:
    raise _Reject(f"{name} is not JSON", "write null, or leave the key out")


def _any_integer(digits: str) -> int:
    """An integer's value never matters here, and huge ones cost quadratic time."""
    return int(digits) if len(digits) < 20 else 0


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_any_integer
)


def _messages(value: Any, line: int, extra: ExtraKeys | None) -> tuple[Message, ...]:
    if type(value) is not dict:
        raise _Reject(
            f"a row must be an object, this is {_kind(value)}", 'write {"messages": [...]}'
        )
    listed = value.get("messages")
    if listed is None:
        raise _Reject("no `messages`", _hint_for(value))
    if type(listed) is not list:
        raise _Reject(f"`messages` must be a list, this is {_kind(listed)}")
    if not listed:
        raise _Reject("`messages` is empty")
    if extra is not None and len(value) > 1:
        for key in value.keys() - _KNOWN_ROW_KEYS:
            extra.see(key, line)
    see = extra.see if extra is not None else None
    messages = tuple(_message(item, at, line, see) for at, item in enumerate(listed, 1))
    _check_order(messages)
    return messages


def _hint_for(value: dict[str, Any]) -> str:
    if {"prompt", "completion"} <= value.keys() or {"instruction", "output"} <= value.keys():
        return "turn prompt and answer into a user and an assistant message"
    if "conversations" in value:
        return "rename `conversations` to `messages`, from/value to role/content"
    return 'a row is {"messages": [{"role": "user", "content": "…"}, …]}'


def _message(item: Any, at: int, line: int, see: Callable[[str, int], None] | None) -> Message:
    if type(item) is not dict:
        raise _Reject(f"message {at} must be an object, this is {_kind(item)}")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise _Reject(*_role_problem(role, at))
    if type(content) is not str:
        raise _Reject(*_content_problem(content, at))
    if not content or content.isspace():
        raise _Reject(f"message {at} ({role}) is empty")
    if not content.isascii():
        try:
            content.encode()
        except UnicodeEncodeError as problem:
            char = ord(content[problem.start])
            raise _Reject(
                f"message {at} holds half a character (lone surrogate \\u{char:04x})",
                "the text was cut inside an emoji or decoded wrongly",
            ) from None
    if "\x00" in content:
        raise _Reject(f"message {at} holds a NUL character")
    if see is not None and len(item) > 2:
        for key in item.keys() - _KNOWN_MESSAGE_KEYS:
            see(f"messages[].{key}", line)
    return Message(role, content)


def _role_problem(role: Any, at: int) -> tuple[str, str]:
    allowed = "roles are system, user and assistant"
    if role is None:
        return f"message {at} has no role", allowed
    if type(role) is not str:
        return f"message {at}: the role is {_kind(role)}, not text", allowed
    return f"message {at}: unknown role {_short(role)}", allowed


def _content_problem(content: Any, at: int) -> tuple[str, str]:
    if content is None:
        return f"message {at} has no content", ""
    if type(content) is list:
        return f"message {at}: content is a list of parts", "join the text parts into one string"
    return f"message {at}: content is {_kind(content)}, not text", ""


def _check_order(messages: tuple[Message, ...]) -> None:
    expected = "user"
    for at, message in enumerate(messages, 1):
        role = message.role
        if role == "system":
            if at > 1:
                raise _Reject(f"message {at}: a system message must come first")
            continue
        if role != expected:
            if expected == "user" and not any(m.role == "user" for m in messages[: at - 1]):
                raise _Reject("the conversation starts with an assistant turn")
            raise _Reject(f"message {at}: two {role} turns in a row", "join them into one")
        expected = "assistant" if role == "user" else "user"
    if messages[-1].role != "assistant":
        if any(message.role == "assistant" for message in messages):
            raise _Reject("the last turn is not the assistant's", "leave the last turn out")
        raise _Reject("no assistant turn, so nothing to learn")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 30 else text[:29] + "…")
