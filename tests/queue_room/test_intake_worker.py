"""The intake worker as a process: one answer for each request, whatever the file is."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_tui.queue.store import Queue
from trainer_tui.safety.workspace import Workspace

Ask = Callable[..., dict[str, Any]]


def start(workspace: Workspace, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer_tui.queue.intake_worker", "--workspace"]
    return subprocess.Popen(
        [*command, str(workspace.root), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.fixture
def ask(with_model: Workspace) -> Iterator[Ask]:
    worker = start(with_model)

    def send(path: Path | None = None, **more: object) -> dict[str, Any]:
        named = {} if path is None else {"path": str(path)}
        line = json.dumps({"do": "take", **named, **more}).encode()
        worker.stdin.write(line + b"\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    yield send
    worker.stdin.close()
    assert worker.wait(60) == 0


def test_files_of_every_kind_get_their_answer_from_one_worker(
    ask: Ask, with_model: Workspace, row
) -> None:
    """One process for all: it must survive each of them."""
    inbox = with_model.inbox
    queue = Queue(with_model)
    rows = "\n".join(row(f"{at}?", f"{at}.") for at in range(30)).encode()

    def put(name: str, data: bytes) -> Path:
        (inbox / name).write_bytes(data)
        return inbox / name

    good = ask(put("good.jsonl", rows), priority="high", added_by="me")
    assert good["ok"] and good["verdict"] == "ok" and good["meta"]["tokens"] > 0
    job = queue.admit(Path(good["staged"]), "high")
    assert (job.meta.added_by, job.name) == ("me", "good.jsonl")

    again = ask(put("again.jsonl", rows))
    assert again["ok"] and again["meta"]["summary"] == "again.jsonl has the same content as job 1"
    assert queue.admit(Path(again["staged"]), "normal").state == "failed"
    assert ask(put("again.jsonl", rows), keep_original=True)["class"] == "duplicate"
    packed = ask(put("packed.jsonl.gz", gzip.compress(rows)), keep_original=True)
    assert packed["class"] == "duplicate"
    wanted = ask(put("again.jsonl", rows), again=True)
    assert wanted["ok"] and wanted["verdict"] == "ok"

    parquet = ask(put("a.parquet", b"PAR1"))
    assert parquet["verdict"] == "block" and "parquet" in parquet["meta"]["summary"]
    assert ask(put("b.parquet", b"PAR1"), keep_original=True)["class"] == "data_error"
    array = queue.admit(Path(ask(put("a.json", b"[\n{}]"))["staged"]), "low")
    assert array.state == "failed" and "json.load" in queue.error(array).hint
    rejects = ask(put("some.jsonl", rows + b"\nno"))
    lines = (Path(rejects["staged"]) / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [31]

    assert ask(inbox)["class"] == "refused"
    (inbox / "link").symlink_to("good.jsonl")
    assert ask(inbox / "link")["class"] == "refused"
    assert ask(inbox / "gone")["class"] == "refused"
    assert ask(Path("relative"))["class"] == "refused"
    assert ask(do="dance")["class"] == "usage"
    raw = os.fsencode(inbox) + b"/\xff.jsonl"
    os.rename(os.fsencode(put("x", rows)), raw)  # noqa: PTH104 - bytes
    named = ask(path_bytes=base64.b64encode(raw).decode(), again=True)
    assert named["ok"] and named["meta"]["original_name"] == "\\xff.jsonl"
    assert os.path.exists(raw)  # noqa: PTH110 - the original is the daemon's to remove

    good_settings = with_model.config_file.read_text()
    (with_model.root / "config.toml").write_text("nonsense = 1\n")
    assert ask(put("late.jsonl", rows))["class"] == "config"
    (with_model.state / "config.last_good.toml").write_text(good_settings)
    late = ask(put("late.jsonl", rows + b"\n" + row("late?", "late.").encode()))
    assert late["ok"] and late["meta"]["tokens"] > 0


def test_a_file_that_is_still_written_is_busy(ask: Ask, with_model: Workspace, row) -> None:
    path = with_model.inbox / "slow.jsonl"
    with path.open("w") as writer:
        writer.write(row("a", "b"))
        writer.flush()
        answer = ask(path)
    if answer["ok"]:
        pytest.skip("no leases on this filesystem")
    assert answer["class"] == "busy"
    assert not list(with_model.queue.glob(".staging-*"))
    assert ask(path)["ok"]


def test_it_ends_by_itself_when_nothing_comes(workspace: Workspace) -> None:
    worker = start(workspace, "--idle-s", "0.1")
    began = time.monotonic()
    assert worker.wait(30) == 0
    worker.stdin.close()
    assert time.monotonic() - began < 30
