"""Every hostile line is one sentence, every good one a conversation, and none raises."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_tui.data import toy_chats
from trainer_tui.data.rows import Conversation, ExtraKeys, Message, RowProblem, parse_line


def load_corpus() -> ModuleType:
    path = Path(__file__).parents[1] / "corpus" / "hostile_rows.py"
    spec = importlib.util.spec_from_file_location("hostile_rows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORPUS = load_corpus()


@pytest.mark.parametrize("name", CORPUS.HOSTILE)
def test_a_hostile_line_is_one_sentence(name: str) -> None:
    raw, words = CORPUS.HOSTILE[name]
    found = parse_line(raw, 7)
    assert isinstance(found, RowProblem)
    assert found.line == 7
    assert words in found.reason
    assert "\n" not in found.reason and len(found.reason) < 200


@pytest.mark.parametrize("name", CORPUS.FINE)
def test_a_line_that_only_looks_hostile_is_a_row(name: str) -> None:
    assert isinstance(parse_line(CORPUS.FINE[name], 1), Conversation)


def test_extra_keys_are_ignored_and_said_once() -> None:
    extra = ExtraKeys()
    line = b'{"id": 1, "messages": [{"role": "user", "content": "a", "name": "x"}, '
    line += b'{"role": "assistant", "content": "b"}]}'
    for number in (3, 4):
        assert isinstance(parse_line(line, number, extra), Conversation)
    assert extra.first_line == {"id": 3, "messages[].name": 3}


@given(st.binary(max_size=300))
def test_no_bytes_raise(raw: bytes) -> None:
    assert isinstance(parse_line(raw, 1), Conversation | RowProblem)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"messages": json_values}) | json_values)
def test_no_json_raises(value: object) -> None:
    assert isinstance(parse_line(json.dumps(value).encode(), 1), Conversation | RowProblem)


contents = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1)


@given(st.lists(contents.filter(lambda text: not text.isspace()), min_size=1, max_size=4))
def test_a_row_written_is_the_row_read(texts: list[str]) -> None:
    messages = []
    for text in texts:
        messages += [Message("user", text), Message("assistant", text)]
    row = Conversation(tuple(messages), 1)
    again = parse_line(row.as_json().encode(), 1)
    assert again == row
    assert again.identity() == row.identity()


def test_identity_is_content_and_nothing_else() -> None:
    one = parse_line(CORPUS.FINE["extra keys"], 1)
    other = parse_line(CORPUS.GOOD, 99)
    assert one.identity() == other.identity() and len(one.identity()) == 16
    moved = Conversation((Message("user", "hiuser"), Message("assistant", "yo")))
    assert moved.identity() != other.identity()
    assert one.prompt_identity() == Conversation((Message("user", "hi"),)).identity()


def test_short_rows_parse_at_more_than_20_000_a_second() -> None:
    lines = [line.encode() for line in toy_chats.generate(rows_per_file=300).files[0].lines] * 20
    best = 0.0
    for _ in range(3):  # the machine may be busy: the best of three counts
        start = time.process_time()
        for number, line in enumerate(lines):
            parse_line(line, number)
        best = max(best, len(lines) / (time.process_time() - start))
    assert best > 20_000
