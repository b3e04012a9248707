"""Tokens on disk are the tokens made, keyed by what made them, whole or not there."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer_tui.data import token_cache, toy_chats
from trainer_tui.data.encode import encode_file
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import RowProblem
from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.token_cache import TokenFile, evict, open_existing, open_tokens, token_key
from trainer_tui.safety import durable, hashing
from trainer_tui.safety.config import Intake

Load = Callable[..., ChatTemplate]
OPTIONS = TokenOptions(max_length=115)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    lines = list(toy_chats.generate(rows_per_file=90).files[3].lines)
    lines[4:4] = ["nope", ""]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


def opened(data_file: Path, template: ChatTemplate, cache: Path, **more) -> TokenFile:
    sha256 = hashing.hash_file(data_file)
    options = more.pop("options", OPTIONS)
    return open_tokens(data_file, sha256, template, options, cache, Intake(), **more)


def test_what_is_opened_is_what_encoding_gives(
    data_file: Path, load_family: Load, tmp_path: Path
) -> None:
    template = load_family("qwen3")
    options = TokenOptions(max_length=90, long_rows="split_turns")
    tokens = opened(data_file, template, tmp_path, options=options)
    at = rejected = 0
    for row in encode_file(data_file, template, options, Intake()):
        if isinstance(row, RowProblem):
            rejected += 1
            continue
        for document in row.documents:
            stored = tokens.document(at)
            assert np.array_equal(stored.ids, document.ids)
            assert np.array_equal(stored.mask, document.mask)
            assert tokens.rows[at] == row.conversation.line
            assert tokens.row_hash(at) == row.conversation.identity()
            assert tokens.lengths[at] == len(document.ids)
            assert tokens.supervised[at] == document.mask.sum()
            at += 1
    assert at == tokens.documents and rejected == tokens.rejected == 1
    assert tokens.tokens == tokens.lengths.sum()
    with pytest.raises(IndexError):
        tokens.document(at)


def test_a_second_start_never_tokenises_again(
    data_file: Path, load_family: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = load_family("chatml")
    first = opened(data_file, template, tmp_path)
    monkeypatch.setattr(token_cache, "encode_file", None)
    again = opened(data_file, template, tmp_path)
    assert np.array_equal(again.document(0).ids, first.document(0).ids)


def test_whatever_decides_tokens_decides_the_key(load_family: Load) -> None:
    templates = [load_family("chatml"), load_family("qwen3"), load_family("chatml", CHANGED)]
    keys = {token_key("a", template, OPTIONS) for template in templates}
    keys.add(token_key("b", templates[0], OPTIONS))
    for options in (
        TokenOptions(max_length=116),
        TokenOptions(115, "truncate"),
        TokenOptions(115, injected_tokens="train"),
        TokenOptions(115, rewritten_turns="refuse"),
    ):
        keys.add(token_key("a", templates[0], options))
    assert len(keys) == 8


CHANGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("damage", ["ids", "meta.json", "lengths"])
def test_a_damaged_cache_is_built_again(
    damage: str, data_file: Path, load_family: Load, tmp_path: Path
) -> None:
    template = load_family("chatml")
    first = opened(data_file, template, tmp_path)
    path = token_cache.folder_of(tmp_path, first.key) / damage
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    assert open_existing(tmp_path, first.key) is None
    again = opened(data_file, template, tmp_path)
    assert again.documents == first.documents


def test_killed_while_building_leaves_nothing_that_opens(
    data_file: Path, load_family: Load, tmp_path: Path
) -> None:
    template = load_family("chatml")
    key = token_key(hashing.hash_file(data_file), template, OPTIONS)
    operations = 0
    while True:
        operations += 1
        cache = tmp_path / str(operations)
        child = os.fork()
        if child == 0:
            _die_before(operations, lambda: opened(data_file, template, cache))  # noqa: B023
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = open_existing(cache, key)
        assert found is None or found.documents
        assert opened(data_file, template, cache).documents
        assert not list((cache / "tokens").glob(".staging-*"))
        if not killed:
            break
    assert operations > 10


def _die_before(number: int, act: Callable[[], object]) -> None:
    count = 0

    def observe(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with durable.observed(observe):
            act()
    finally:
        os._exit(0)


def test_two_builders_of_one_key_build_it_once(
    data_file: Path, load_family: Load, tmp_path: Path
) -> None:
    template = load_family("chatml")
    found: list[TokenFile] = []
    builders = [
        threading.Thread(target=lambda: found.append(opened(data_file, template, tmp_path)))
        for _ in range(4)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len({tokens.documents for tokens in found}) == 1 and len(found) == 4


def test_least_recently_used_tokens_go_first_and_open_ones_stay_readable(
    data_file: Path, load_family: Load, tmp_path: Path
) -> None:
    template = load_family("chatml")
    made = [
        opened(data_file, template, tmp_path, options=TokenOptions(max_length=200 + number))
        for number in range(3)
    ]
    before = [tokens.document(0).ids.copy() for tokens in made]
    for age, tokens in zip((300, 100, 200), made, strict=True):
        then = time.time() - age
        os.utime(token_cache.folder_of(tmp_path, tokens.key), (then, then))
    folder = token_cache.folder_of(tmp_path, made[0].key)
    size = sum(file.stat().st_size for file in folder.iterdir())
    gone = evict(tmp_path, size * 2, keep=made[0].key)
    assert gone == [made[2].key]
    assert np.array_equal(made[2].document(0).ids, before[2])
    shutil.rmtree(tmp_path / "tokens")
    assert np.array_equal(made[1].document(0).ids, before[1])


def test_an_empty_file_opens_as_no_documents(load_family: Load, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    assert opened(path, load_family("chatml"), tmp_path).documents == 0
