"""Lines that are no rows, each with words that its reason must contain."""

from __future__ import annotations

import json


def message(role: object = "user", content: object = "hi", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def row(*messages: object, **more: object) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


GOOD = row(message(), message("assistant", "yo"))
ASK, ANSWER = message(), message("assistant", "yo")

HOSTILE: dict[str, tuple[bytes, str]] = {
    "words": (b"hello", "not JSON"),
    "half a row": (GOOD[:-5], "ends too early"),
    "a number": (b"12", "must be an object, this is a number"),
    "null": (b"null", "must be an object, this is null"),
    "a list": (b"[1, 2]", "must be an object, this is a list"),
    "a string": (b'"hi"', "must be an object, this is text"),
    "two rows on a line": (GOOD + GOOD, "more than one JSON value"),
    "old Mac line ends": (GOOD + b"\r" + GOOD, "more than one JSON value"),
    "no messages": (b'{"text": "hi"}', "no `messages`"),
    "prompt and completion": (b'{"prompt": "a", "completion": "b"}', "no `messages`"),
    "messages is null": (b'{"messages": null}', "no `messages`"),
    "messages is text": (b'{"messages": "hi"}', "must be a list, this is text"),
    "messages is empty": (b'{"messages": []}', "`messages` is empty"),
    "message is text": (row("hi"), "message 1 must be an object"),
    "no role": (row({"content": "hi"}), "message 1 has no role"),
    "role is a number": (row(message(role=3)), "the role is a number"),
    "wrong role": (row(message("human"), ANSWER), "unknown role 'human'"),
    "capital role": (row(message("User"), ANSWER), "unknown role 'User'"),
    "no content": (row({"role": "user"}, ANSWER), "message 1 has no content"),
    "content is null": (row(message(content=None), ANSWER), "message 1 has no content"),
    "content is a number": (row(message(content=5), ANSWER), "content is a number"),
    "content in parts": (row(message(content=[{"type": "text"}]), ANSWER), "list of parts"),
    "empty content": (row(message(content=""), ANSWER), "message 1 (user) is empty"),
    "white content": (row(ASK, message("assistant", " \n\t")), "message 2 (assistant) is empty"),
    "no assistant turn": (row(ASK), "no assistant turn"),
    "system alone": (row(message("system", "x")), "no assistant turn"),
    "assistant first": (row(ANSWER), "starts with an assistant turn"),
    "two users": (row(ASK, ASK, ANSWER), "two user turns in a row"),
    "two assistants": (row(ASK, ANSWER, ANSWER), "two assistant turns in a row"),
    "late system": (row(ASK, ANSWER, message("system", "x")), "system message must come first"),
    "user last": (row(ASK, ANSWER, ASK), "the last turn is not the assistant's"),
    "NaN": (b'{"messages": [], "score": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"messages": [], "score": -Infinity}', "-Infinity is not JSON"),
    "key twice": (b'{"messages": [], "messages": []}', "'messages' stands twice"),
    "role twice": (
        b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
        "'role' stands twice",
    ),
    "lone surrogate": (
        b'{"messages": [{"role": "user", "content": "x\\ud83d"}]}',
        "lone surrogate \\ud83d",
    ),
    "not UTF-8": (b'{"messages": "\xff"}', "not UTF-8 at byte 15 (0xff)"),
    "latin-1": ('{"messages": "é"}'.encode("latin-1"), "not UTF-8"),
    "overlong UTF-8": (b'{"a": "\xc0\x80"}', "not UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "UTF-16"),
    "NUL bytes": (b"\x00" * 50, "holds NUL bytes"),
    "a NUL byte": (GOOD[:20] + b"\x00" + GOOD[20:], "holds NUL bytes"),
    "an escaped NUL": (row(message(content="a\x00b"), ANSWER), "holds a NUL character"),
    "raw control character": (b'{"messages": "a\x01b"}', "control character"),
    "deep nesting": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    "single quotes": (b"{'messages': []}", "not JSON"),
    "trailing comma": (b'{"messages": [],}', "not JSON"),
    "a comment": (b"// hello", "not JSON"),
    "a CSV line": (b"user,hi,assistant,yo", "not JSON"),
}

# What looks hostile and is fine: extra keys are ignored, whatever their value.
FINE: dict[str, bytes] = {
    "extra keys": row(ASK, ANSWER, id=7, tags=["a"]),
    "huge number": GOOD[:-1] + b', "n": ' + b"9" * 10_000 + b"}",
    "beyond double": GOOD[:-1] + b', "n": 1e999}',
    "CR at the end": GOOD + b"\r",
    "spaces around": b"  " + GOOD + b" \t",
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "emoji": row(message(content="🦉"), message("assistant", "🦉🦉")),
    "escaped emoji": b'{"messages": [{"role": "user", "content": "\\ud83e\\udd89"}, '
    b'{"role": "assistant", "content": "yo"}]}',
    "with a system message": row(message("system", "x"), ASK, ANSWER),
}
