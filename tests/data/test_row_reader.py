"""Files of any kind: rows in order, every line counted, memory flat, and bombs refused."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from trainer_tui.data.row_reader import Counts, Limits, read_rows, read_stream
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.safety.errors import DataProblem

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
MiB = 1 << 20


def read(data: bytes, **limits: int) -> tuple[list[Conversation | RowProblem], Counts]:
    counts = Counts()
    return list(read_stream(io.BytesIO(data), Limits(**limits), counts)), counts


def test_lines_keep_their_numbers_around_blank_ones() -> None:
    rows, counts = read(f"\n{GOOD}\n\r\n  \nnope\n{GOOD}".encode())
    assert [row.line for row in rows] == [2, 5, 6]
    assert (counts.lines, counts.blank, counts.rows, counts.problems) == (6, 3, 2, 1)


def test_bad_rows_never_take_the_good_ones_with_them() -> None:
    rows, _ = read(f"{GOOD}\n\xff\n{{\n{GOOD}\n".encode("latin-1"))
    assert [type(row) for row in rows] == [Conversation, RowProblem, RowProblem, Conversation]


def test_a_byte_order_mark_is_said_and_ignored() -> None:
    rows, counts = read(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert isinstance(rows[0], Conversation)
    assert "byte order mark" in counts.notes[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD.encode("utf-16"), "UTF-16"),
        (b"PAR1" + bytes(100), "parquet"),
        (b"[\n" + GOOD.encode() + b"\n]", "JSON array"),
        (gzip.compress(GOOD.encode() * 100, mtime=0)[:-20], "ends too early"),
        (b"\x1f\x8b" + bytes(50), "damaged"),
        (zstandard.compress(GOOD.encode() * 100)[:-3], "ends too early"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "damaged"),
    ],
)
def test_a_file_that_cannot_hold_rows_is_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(DataProblem, match=reason):
        read(data)


def test_compressed_files_read_as_what_they_hold() -> None:
    text = "".join(f"{GOOD}\n" for _ in range(5000)).encode()
    plain, _ = read(text)
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    for packed in (
        gzip.compress(text),
        b"".join(gzip.compress(half) for half in halves),
        gzip.compress(text) + b"\0" * 512,  # tape and some object stores pad to whole blocks
        gzip.compress(text) + b"\0" * (3 << 20),
        gzip.compress(halves[0]) + b"\0" * 512 + gzip.compress(halves[1]) + b"\0",
        zstandard.compress(text),
        b"".join(zstandard.compress(half) for half in halves),
    ):
        rows, counts = read(packed, max_ratio=10_000)
        assert rows == plain and counts.bytes == len(text)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_bomb_is_refused_before_it_unpacks(pack) -> None:
    bomb = pack(bytes(200 * MiB))
    tracemalloc.start()
    with pytest.raises(DataProblem, match="200 times its size"):
        read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * MiB


def test_a_file_above_the_size_cap_is_refused() -> None:
    with pytest.raises(DataProblem, match="more than 1000 bytes"):
        read(f"{GOOD}\n".encode() * 100, max_file_bytes=1000)


def test_a_line_above_the_cap_is_skipped_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as stream:
        stream.write(f"{GOOD}\n".encode())
        for _ in range(100):
            stream.write(b"x" * MiB)
        stream.write(f"\n{GOOD}\n".encode())
    tracemalloc.start()
    rows = list(read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.line for row in rows] == [1, 2, 3]
    assert "longer than 4194304 bytes" in rows[1].reason
    assert peak < 30 * MiB


def test_a_million_blank_lines_pass() -> None:
    rows, counts = read(b"\n" * 1_000_000 + GOOD.encode())
    assert len(rows) == 1 and rows[0].line == 1_000_001 and counts.blank == 1_000_000


@given(
    st.lists(st.sampled_from([GOOD, "", "no", "x" * 90, json.dumps("é" * 30)]), max_size=30),
    st.integers(1, 40),
)
def test_where_chunks_end_changes_nothing(lines: list[str], size: int) -> None:
    class Dripping(io.BytesIO):
        def read(self, wanted: int = -1) -> bytes:
            return super().read(size)

    data = "\n".join(lines).encode()
    limits = Limits(max_line_bytes=88)
    whole = list(read_stream(io.BytesIO(data), limits, Counts()))
    assert list(read_stream(Dripping(data), limits, Counts())) == whole
