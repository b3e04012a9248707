"""No text from outside reaches a terminal raw, and every name becomes a harmless one."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from trainer_tui.safety.text import _JOINING, file_name_text, printable, safe_name

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_nothing_printable_gives_can_move_a_cursor_or_turn_the_text(text):
    shown = printable(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert not any(
        unicodedata.bidirectional(char) in ("RLO", "LRO", "RLI", "FSI") for char in shown
    )
    shown.encode("utf-8")


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"))))
def test_plain_text_stays_as_it_is(text):
    assert printable(text) == text.translate(_JOINING)


@given(
    st.text(st.sampled_from("ae\u0301 👩👧🏳🌈🏽🇩🇪☝1\u20e3漢한क्षิ\ufe0e\ufe0f\u200d\u200b\U000e0067"))
)
def test_what_is_shown_is_as_wide_as_its_characters_one_by_one(text):
    """So terminals that join emoji and those that do not agree on every column."""
    shown = printable(text)
    assert cell_len(shown) == sum(cell_len(char) for char in shown)
    assert not set("\ufe0e\ufe0f\u200d\u200b") & set(shown)
    assert printable(shown) == shown


def test_joined_emoji_are_shown_by_their_parts():
    assert printable("👩\u200d👩\u200d👧\u200d👦family🏳\ufe0f\u200d🌈 e\u0301x.jsonl") == (
        "👩👩👧👦family🏳🌈 e\u0301x.jsonl"
    )
    assert printable("👍🏽 🇩🇪 1\ufe0f\u20e3") == "👍 DE 1\u20e3"
    assert printable("می\u200cخواهم") == "میخواهم"
    assert printable("a\u200bb\ufeff\U000e0067") == "a\\u200bb\\ufeff\\U000e0067"


def test_escapes_are_shown_not_obeyed():
    assert printable("\x1b[31mred\x07\n") == "\\x1b[31mred\\x07\\x0a"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert printable("\ud800") == "\\ud800" and printable("\x9b") == "\\x9b"
    assert printable("漢字 é 🙂") == "漢字 é 🙂"


@given(ANY_TEXT, st.integers(1, 20))
def test_a_limit_is_kept(text, limit):
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown == printable(text) or shown.endswith("…")


@given(st.binary(max_size=300))
def test_a_safe_name_is_a_file_name_of_ascii_that_hides_nothing(raw):
    name = safe_name(raw)
    assert 1 <= len(name) <= 60 and name.isascii()
    assert "/" not in name and "\0" not in name and " " not in name and "\n" not in name
    assert name[0] not in ".-" and name not in (".", "..")


def test_safe_names_resemble_the_original():
    assert safe_name(b"support chats (1).jsonl") == "support_chats_1_.jsonl"
    assert safe_name(b"../../etc/passwd") == "etc_passwd"
    assert safe_name(b"-rf") == "rf" and safe_name(b"") == "file" and safe_name(b"...") == "file"
    assert safe_name("日本".encode()) == "file"


@given(st.binary(max_size=255))
def test_any_file_name_can_be_shown(raw):
    shown = file_name_text(raw)
    assert printable(shown) == shown
    shown.encode("utf-8")


def test_bytes_that_are_no_utf8_are_shown_as_bytes():
    assert file_name_text(b"caf\xe9.jsonl") == "caf\\xe9.jsonl"
