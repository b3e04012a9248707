"""One of many files costs what the first did: each look reads only what is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_tui.data import token_cache
from trainer_tui.data.token_cache import CacheRoom
from trainer_tui.queue import known
from trainer_tui.queue.intake import Inbox, is_unchanged
from trainer_tui.queue.known import Known
from trainer_tui.safety.workspace import Workspace


def sha(number: int) -> str:
    return f"{number:064x}"


def test_known_contents_are_followed_through_every_change_of_their_list(
    workspace: Workspace,
) -> None:
    queue, follower = workspace.queue, Known(workspace.queue)
    assert follower.holder_of(sha(1)) is None
    for number in range(1, 6):
        known.remember(queue, sha(number), number)
        assert follower.holder_of(sha(number)) == number
    known.forget(queue, sha(2))
    with (queue / known.FILE_NAME).open("ab") as stream:
        stream.write(f"{sha(7)} 7".encode())  # torn by a power cut, or half written just now
    assert follower.holder_of(sha(7)) is None and follower.holder_of(sha(2)) is None
    known.remember(queue, sha(8), 8)  # the torn one is fenced off
    assert follower.holder_of(sha(8)) == 8 and follower.holder_of(sha(7)) is None
    assert follower.holders == known.read(queue)[0]
    (queue / known.FILE_NAME).unlink()
    assert follower.holder_of(sha(1)) is None
    known.remember(queue, sha(9), 9)
    assert follower.holder_of(sha(9)) == 9


def test_a_question_reads_only_what_was_appended(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, noted = Known(workspace.queue), []
    for number in range(1, 101):
        known.remember(workspace.queue, sha(number), number)
    follower.catch_up()
    honest = Known._note
    monkeypatch.setattr(Known, "_note", lambda self, line: (noted.append(line), honest(self, line)))
    known.remember(workspace.queue, sha(101), 101)
    assert follower.holder_of(sha(101)) == 101
    assert len(noted) == 1


def put(cache: Path, key: str, size: int) -> None:
    folder = token_cache.folder_of(cache, key)
    folder.mkdir(parents=True)
    (folder / "ids").write_bytes(bytes(size))


def test_the_cache_is_measured_when_it_may_be_full_and_not_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    honest = token_cache._evict
    monkeypatch.setattr(token_cache, "_evict", lambda *args: looks.append(args) or honest(*args))
    room = CacheRoom(tmp_path)
    for number in range(300):
        put(tmp_path, f"{number:04d}", 1000)
        room.built(f"{number:04d}", 100_000)
        total = sum(file.stat().st_size for file in tmp_path.glob("tokens/*/ids"))
        assert total <= 100_000
    assert len(looks) < 60
    assert token_cache.folder_of(tmp_path, "0299").exists(), "the newest stays"
    room.built("0299", 50_000)  # another cap acts at once
    assert sum(file.stat().st_size for file in tmp_path.glob("tokens/*/ids")) <= 50_000


def test_a_look_for_what_overtakes_leaves_the_other_folders_alone(workspace: Workspace) -> None:
    inbox = Inbox(workspace)
    for folder in ("low", "", "high"):
        (workspace.inbox / folder / "a.jsonl").write_bytes(b"x")
    assert inbox.look(0.0, above="high").settling == 0
    assert inbox.look(0.0, above="normal").settling == 1
    found = inbox.look(2.0, above="low").ready
    assert [one.priority for one in found] == ["high"], "the other was seen for the first time"
    assert [one.priority for one in inbox.look(4.0).ready] == ["high", "normal"]
    (candidate, _) = inbox.look(5.0, above="low").ready
    assert is_unchanged(candidate)
    candidate.path.write_bytes(b"xy")
    assert not is_unchanged(candidate)
