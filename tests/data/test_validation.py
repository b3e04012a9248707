"""What measures never trains; what trains is everything else; the choice never changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer_tui.data import toy_chats
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.token_cache import TokenFile, open_tokens
from trainer_tui.data.validation import (
    USER_FILE,
    ValidationSet,
    contribute,
    holdout_count,
    split_documents,
)
from trainer_tui.safety import hashing
from trainer_tui.safety.config import Intake, Validation
from trainer_tui.safety.errors import DataProblem, NotFound

SETTINGS = Validation(rows=60)


@pytest.fixture
def files(tmp_path: Path, load_family: Callable[..., ChatTemplate]):
    """Opened files: `files(number)` is (path, sha256, tokens) of one with distinct rows."""
    template = load_family("chatml")

    def open_file(number: int, rows: int = 300) -> tuple[Path, str, TokenFile]:
        path = tmp_path / f"{number}.jsonl"
        lines = [_row(f"{number} and {row}?", f"It is {row}.") for row in range(rows)]
        path.write_text("\n".join(lines) + "\n")
        sha256 = hashing.hash_file(path)
        cache = tmp_path / "cache"
        return path, sha256, open_tokens(path, sha256, template, TokenOptions(), cache, Intake())

    return open_file


def _row(ask: str, answer: str) -> str:
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def test_the_set_grows_file_by_file_then_freezes(files, tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    sizes, ids = [], []
    for number in range(4):
        found = contribute(folder, *files(number), SETTINGS, seed=17)
        sizes.append(found.rows)
        ids.append(found.id)
    assert sizes == [30, 60, 60, 60]  # never more than a tenth of a file
    assert ids[1] == ids[2] == ids[3] != ids[0]
    assert ValidationSet.current(folder).meta.frozen
    assert ValidationSet.by_id(folder, ids[0]).rows == 30
    assert ValidationSet.by_id(folder, ids[0]).hashes < ValidationSet.current(folder).hashes
    with pytest.raises(NotFound):
        ValidationSet.by_id(folder, "nope")


def test_the_first_file_after_which_there_is_enough_to_measure_by_freezes_the_set(
    files, tmp_path: Path
) -> None:
    folder, wanted = tmp_path / "validation", Validation(rows=1000)
    rows = [
        contribute(folder, *files(n, size), wanted, seed=17).rows
        for n, size in enumerate((900, 1300, 2500))
    ]
    assert rows == [90, 220, 220]  # the third file would have given 250 more
    assert ValidationSet.current(folder).meta.frozen
    assert len(ValidationSet.all(folder)) == 2


def test_a_file_gives_once(files, tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    first = contribute(folder, *files(1), SETTINGS, seed=17)
    assert contribute(folder, *files(1), SETTINGS, seed=17).id == first.id
    assert len(ValidationSet.all(folder)) == 1


def test_rows_of_the_set_leave_training_wherever_they_come_from(files, tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    path, sha256, tokens = files(1)
    found = contribute(folder, path, sha256, tokens, SETTINGS, seed=17)
    split = split_documents(tokens, found, SETTINGS, seed=17)
    trained = {tokens.row_hash(at) for at in split.train.tolist()}
    held = {tokens.row_hash(at) for at in split.holdout.tolist()}
    assert split.in_validation == 30 == len(found.hashes)
    assert not trained & found.hashes and not held & found.hashes and not trained & held
    assert len(trained) + len(held) + 30 == 300
    assert len(held) == 8


def test_the_split_is_a_pure_function_of_content_and_seed(files) -> None:
    _, _, tokens = files(1)
    first = split_documents(tokens, None, SETTINGS, seed=17)
    again = split_documents(tokens, None, SETTINGS, seed=17)
    other = split_documents(tokens, None, SETTINGS, seed=18)
    assert np.array_equal(first.holdout, again.holdout)
    assert not np.array_equal(first.holdout, other.holdout)


def test_a_duplicate_of_a_holdout_row_does_not_train(
    tmp_path: Path, load_family: Callable[..., ChatTemplate]
) -> None:
    path = tmp_path / "twice.jsonl"
    lines = [_row(f"{row}?", "yes") for row in range(120)]
    path.write_text("\n".join(lines + lines))
    sha256 = hashing.hash_file(path)
    tokens = open_tokens(
        path, sha256, load_family("chatml"), TokenOptions(), tmp_path / "cache", Intake()
    )
    split = split_documents(tokens, None, SETTINGS, seed=17)
    assert len(split.holdout) == 16
    hashes = [
        {tokens.row_hash(at) for at in part.tolist()} for part in (split.train, split.holdout)
    ]
    assert not hashes[0] & hashes[1]


def test_excluded_rows_do_not_train_and_are_counted(files) -> None:
    _, _, tokens = files(1)
    split = split_documents(tokens, None, SETTINGS, seed=17, excluded_rows=[3, 5])
    assert split.excluded == 2
    assert not {3, 5} & set(tokens.rows[split.train].tolist())
    assert len(split.train) + len(split.holdout) == 298


@pytest.mark.parametrize(
    ("rows", "count"), [(0, 0), (99, 0), (100, 8), (7999, 8), (8000, 8), (20_000, 20)]
)
def test_holdout_is_a_thousandth_but_eight_at_least(rows: int, count: int) -> None:
    assert holdout_count(rows, Validation()) == count
    assert holdout_count(rows, Validation(holdout_share=0, holdout_rows=0)) == 0


def test_a_persons_own_file_is_used_and_an_edit_of_it_is_a_new_set(files, tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    folder.mkdir()
    (folder / USER_FILE).write_text("".join(f"{_row(f'mine {at}', 'x')}\n" for at in range(5)))
    first = contribute(folder, *files(1), SETTINGS, seed=17)
    assert first.rows == 5 and first.meta.frozen and first.meta.by_user
    (folder / USER_FILE).write_text(_row("another", "y"))
    second = contribute(folder, *files(2), SETTINGS, seed=17)
    assert second.rows == 1 and ValidationSet.by_id(folder, first.id).rows == 5
    (folder / USER_FILE).write_text("not a row")
    with pytest.raises(DataProblem, match="line 1: not JSON"):
        contribute(folder, *files(3), SETTINGS, seed=17)


def test_small_files_and_zero_rows_give_nothing(files, tmp_path: Path) -> None:
    assert contribute(tmp_path / "a", *files(1, 9), SETTINGS, seed=17) is None
    assert contribute(tmp_path / "b", *files(2), Validation(rows=0), seed=17) is None


def test_toy_chats_repeat_by_seed_and_never_show_a_held_out_prompt(tmp_path: Path) -> None:
    toys = toy_chats.generate(seed=3)
    assert toys == toy_chats.generate(seed=3) != toy_chats.generate(seed=4)
    shown = {
        message["content"]
        for file in toys.files
        for line in file.lines
        for message in json.loads(line)["messages"]
    }
    assert len(toys.held_out) == 40
    assert not shown & {question.prompt for question in toys.held_out}
    assert {file.priority for file in toys.files} == {"high", "normal", "low"}
    turns = [len(json.loads(line)["messages"]) for file in toys.files for line in file.lines]
    assert min(turns) == 2 and max(turns) == 7
    assert len(toy_chats.write(tmp_path, toys)) == 5
