"""`config.toml` edited badly during training: the last good one stays, and why is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import invariants
import pytest
from daemon_harness import Harness, chat_rows, make_workspace, wait_for

GOOD = "learning_rate = 1e-4\n"


def _symlinked(file: Path, text: str) -> None:
    elsewhere = file.with_name("elsewhere.toml")
    elsewhere.write_text(text + "learning_rate = 0.5\n")
    link = file.with_name("link")
    link.symlink_to(elsewhere)
    link.rename(file)


def _removed(file: Path, text: str) -> None:
    file.unlink()


def _appended(more: str) -> Callable[[Path, str], None]:
    return lambda file, text: file.write_text(text + more)


# What is done, and whether it is a problem (the edit is refused) or an edit that waits.
EDITS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "invalid TOML": (lambda file, text: file.write_text("[[[ = 1"), "problem"),
    "half written": (lambda file, text: file.write_text(text[: len(text) // 2 + 5]), "problem"),
    "unknown key": (_appended("\n[supervision]\natempts = 3\n"), "problem"),
    "wrong type": (_appended('\n[retention]\ncheckpoints = "many"\n'), "problem"),
    "removed": (_removed, "problem"),
    "symlinked": (_symlinked, "problem"),
    "bytes, not text": (lambda file, text: file.write_bytes(b"\xff\xfe\0\0" * 50), "problem"),
    "critical key": (
        lambda file, text: file.write_text(f"max_length = 77\n{text}"),
        "max_length",
    ),
    "learning rate": (
        lambda file, text: file.write_text(text.replace("1e-4", "0.002")),
        "learning_rate",
    ),
}


@pytest.mark.end_to_end
@pytest.mark.timeout(300)
def test_a_bad_edit_of_the_settings_keeps_the_last_good_ones(tmp_path, record, rounds):
    workspace = make_workspace(tmp_path / "ws", GOOD, steps=100_000, step_s=0.01, save_every=500)
    workspace.prepare()
    dropped = {"a.jsonl": chat_rows(3, "a")}
    (workspace.inbox / "a.jsonl").write_bytes(dropped["a.jsonl"])
    file = workspace.root / "config.toml"
    good = file.read_text()
    daemon = Harness(workspace).start()
    try:
        wait_for(lambda: daemon.training()["global_step"], 60, "it trains")
        pid = daemon.training()["trainer_pid"]
        for name, (edit, expected) in [*EDITS.items()] * rounds:
            with record.run(f"config: {name}", "bad_edit"):
                edit(file, good)
                shown = wait_for(lambda e=expected: seen(daemon, e), 20, f"{name} is noticed")
                assert shown
                before = daemon.training()["global_step"]
                wait_for(lambda b=before: daemon.training()["global_step"] > b, 20, "goes on")
                rate = wait_for(lambda: daemon.training()["learning_rate"])
                assert rate == 1e-4 and daemon.training()["trainer_pid"] == pid
                again = file.with_name("new.toml")
                again.write_text(good)
                again.replace(file)
                wait_for(lambda: seen(daemon, "fine"), 20, "the good one is back")
        assert daemon.training()["restarts"] == 0
        assert daemon.stop() == 0
        invariants.check(workspace, dropped)
    finally:
        daemon.close()


def seen(daemon: Harness, expected: str) -> bool:
    config = daemon.status()["config"]
    waiting = {edit["key"] for edit in config["pending"]}
    match expected:
        case "problem":
            return bool(config["problem"]) and not waiting
        case "fine":
            return not config["problem"] and not waiting
        case key:
            return not config["problem"] and waiting == {key}
