"""Reading a file's rows in flat memory, whatever the file: plain, gzip or zstd, told by content.

Invariant: memory is bounded by the line cap, time by the size caps; every line is counted once.
A file that cannot hold rows at all (parquet, a JSON array, a bomb) is one DataProblem.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import zstandard

from trainer_tui.data.rows import UTF16, Conversation, ExtraKeys, RowProblem, parse_line
from trainer_tui.safety.errors import DataProblem

READ_BYTES = 1 << 20
RATIO_SLACK_BYTES = 16 << 20  # small files may be very regular
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_ZSTD_WINDOW_BYTES = 128 << 20
_ZSTD_FEED_BYTES = 512  # 4 bytes can stand for a block of 128 KiB, so at most 16 MiB come out


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps, in bytes; `max_ratio` is decompressed over compressed."""

    max_line_bytes: int = 4 << 20
    max_file_bytes: int = 64 << 30
    max_ratio: int = 200


@dataclass(slots=True)
class Counts:
    """Filled while reading."""

    lines: int = 0
    blank: int = 0
    rows: int = 0
    problems: int = 0
    bytes: int = 0
    even: bool = False  # lines at even distances, not the first ones
    extra: ExtraKeys = field(default_factory=ExtraKeys)
    notes: list[str] = field(default_factory=list)


def read_rows(
    path: Path, limits: Limits | None = None, counts: Counts | None = None
) -> Iterator[Conversation | RowProblem]:
    """Every line that is not blank, in order.

    Raises:
        DataProblem: the file as a whole is not what it should be.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        yield from read_stream(stream, limits or Limits(), counts or Counts())


def read_stream(
    stream: BinaryIO, limits: Limits, counts: Counts
) -> Iterator[Conversation | RowProblem]:
    """The same for an open file. Raises like `read_rows`."""
    for line, raw in _lines(plain_chunks(stream, limits), limits.max_line_bytes, counts):
        found = _row_of(raw, line, limits, counts)
        if found is not None:
            yield found


def read_evenly(
    path: Path, limits: Limits, counts: Counts, rows: int
) -> Iterator[Conversation | RowProblem]:
    """About `rows` lines that stand at even distances in a plain file: what is read grows with
    `rows`, not with the file. Their line numbers count the lines looked at. A compressed file,
    which cannot be entered in the middle, and a small one give their first `rows`.

    Raises like `read_rows`.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(4)
        stream.seek(0)
        if is_compressed(head) or size < limits.max_line_bytes:
            yield from itertools.islice(read_stream(stream, limits, counts), rows)
            return
        counts.even = True
        for number in range(rows):
            if number:
                stream.seek(size * number // rows)
                _to_next_line(stream, limits.max_line_bytes)
            else:
                next(plain_chunks(stream, limits), None)  # says what it is, if it is no JSON lines
                stream.seek(0)
            raw = stream.readline(limits.max_line_bytes + 1)
            if not raw:
                return  # the last line is the one before
            counts.lines += 1
            counts.bytes += len(raw)
            found = _row_of(raw.removesuffix(b"\n"), counts.lines, limits, counts)
            if found is not None:
                yield found


def _to_next_line(stream: BinaryIO, cap: int) -> None:
    """Past the rest of the line that the position is in, or far into an endless one."""
    stream.readline(cap)


def _row_of(
    raw: bytes | None, line: int, limits: Limits, counts: Counts
) -> Conversation | RowProblem | None:
    """One line judged and counted; None when it is blank. `raw`: None for one above the cap."""
    found: Conversation | RowProblem
    if raw is None or len(raw) > limits.max_line_bytes:
        hint = "raise it: config set intake.max_line_bytes N"
        cap = limits.max_line_bytes
        found = RowProblem(line, f"the line is longer than {cap} bytes", hint)
    else:
        if line == 1:
            raw = _first_line(raw, counts)
        if not raw or raw.isspace():
            counts.blank += 1
            return None
        found = parse_line(raw, line, counts.extra)
    if isinstance(found, Conversation):
        counts.rows += 1
    else:
        counts.problems += 1
    return found


def _first_line(raw: bytes, counts: Counts) -> bytes:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataProblem(f"the file is {UTF16[0]}", UTF16[1])
    if raw.startswith(b"\xef\xbb\xbf"):
        counts.notes.append("the file starts with a byte order mark, which is ignored")
        raw = raw[3:]
    head = raw.lstrip()
    if head.startswith(b"[") and not counts.problems:
        raise DataProblem(
            "the file is one JSON array, not a row on each line",
            "convert it: python3 -c 'import json, sys; "
            "[print(json.dumps(row)) for row in json.load(sys.stdin)]' < IN.json > OUT.jsonl",
        )
    return raw


def _lines(chunks: Iterator[bytes], cap: int, counts: Counts) -> Iterator[tuple[int, bytes | None]]:
    """(number, line without its newline); None for a line above the cap, which is skipped."""
    rest, skipping = b"", False
    for chunk in chunks:
        counts.bytes += len(chunk)
        parts = chunk.split(b"\n")
        parts[0] = b"" if skipping else rest + parts[0]
        for part in parts[:-1]:
            counts.lines += 1
            if skipping:
                skipping = False
            elif len(part) > cap:
                yield counts.lines, None
            else:
                yield counts.lines, part
        rest = parts[-1]
        if skipping:
            rest = b""
        elif len(rest) > cap:
            yield counts.lines + 1, None
            rest, skipping = b"", True
    if skipping or rest:
        counts.lines += 1
        if not skipping:
            yield counts.lines, rest


def plain_chunks(stream: BinaryIO, limits: Limits) -> Iterator[bytes]:
    """The file's content, decompressed where it is compressed, in chunks of about 1 MiB.

    Raises:
        DataProblem: a format that is not ours, damaged compression, or a cap exceeded.
    """
    head = stream.read(READ_BYTES)
    if head.startswith(_PARQUET):
        raise DataProblem(
            "the file is parquet, not JSON lines",
            "convert it: python -c 'import pandas as p; "
            'p.read_parquet("IN.parquet").to_json("OUT.jsonl", orient="records", lines=True)\'',
        )
    if head.startswith(_GZIP):
        source = _capped(_gunzip(head, stream), stream, limits)
    elif head.startswith(_ZSTD):
        source = _capped(_unzstd(head, stream), stream, limits)
    else:
        source = _capped(_raw(head, stream), None, limits)
    yield from source


def is_compressed(head: bytes) -> bool:
    """Whether the first bytes are those of gzip or zstd."""
    return head.startswith((_GZIP, _ZSTD))


def _raw(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(READ_BYTES)


def _capped(
    chunks: Iterator[bytes], compressed: BinaryIO | None, limits: Limits
) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limits.max_file_bytes:
            raise DataProblem(
                f"the file holds more than {limits.max_file_bytes} bytes",
                "split it, or raise intake.max_file_bytes",
            )
        if compressed is not None and total > RATIO_SLACK_BYTES:
            read = compressed.tell()
            if total > read * limits.max_ratio:
                raise DataProblem(
                    f"the file unpacks to more than {limits.max_ratio} times its size",
                    "unpack it yourself if that is right, or raise intake.max_ratio",
                )
        yield chunk


def _gunzip(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    data = head
    try:
        while data or (data := stream.read(READ_BYTES)):
            if decoder.eof:  # several members one after the other are one file
                data = data.lstrip(b"\x00")  # and so is one that is padded to whole blocks
                if not data:
                    continue
                decoder = zlib.decompressobj(wbits=31)
            yield decoder.decompress(data, READ_BYTES)
            data = decoder.unconsumed_tail or decoder.unused_data
        yield decoder.flush()
    except zlib.error as problem:
        raise DataProblem(f"the gzip data is damaged: {problem}", "copy the file again") from None
    if not decoder.eof:
        raise DataProblem("the gzip data ends too early", "copy the file again")


def _unzstd(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    decoder = decompressor.decompressobj()
    try:
        for data in _raw(head, stream):
            for start in range(0, len(data), _ZSTD_FEED_BYTES):
                piece = data[start : start + _ZSTD_FEED_BYTES]
                while piece:
                    if decoder.eof:  # several frames one after the other are one file
                        decoder = decompressor.decompressobj()
                    yield decoder.decompress(piece)
                    piece = decoder.unused_data if decoder.eof else b""
    except zstandard.ZstdError as problem:
        raise DataProblem(f"the zstd data is damaged: {problem}", "copy the file again") from None
    if not decoder.eof:
        raise DataProblem("the zstd data ends too early", "copy the file again")
