"""What a user does, from the shell, against everything real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from person import Person

from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.context import ensure_daemon

pytestmark = pytest.mark.end_to_end


def starts(person: Person) -> None:
    ensure_daemon(Workspace(person.root))


def starts_slowly(person: Person) -> None:
    """With so many epochs that a file is still in training when the test interferes."""
    person.types("config", "set", "epochs", "25")
    starts(person)


def test_files_flow_from_the_inbox_into_a_model_that_transformers_loads(
    person: Person, chats: dict[str, bytes]
) -> None:
    starts(person)
    person.drops("lessons.jsonl", chats["first lessons.jsonl"])
    person.drops("urgent.jsonl", chats["revision.jsonl"], "high")
    person.waits(
        lambda: len([j for j in person.jobs().values() if j["state"] == "completed"]) == 2, 120
    )
    assert not list((person.root / "inbox").glob("*.jsonl"))
    status = person.status()["training"]
    assert status["global_step"] > 20
    series = person.reads("status")["training"]
    assert series["loss"] < 5.0
    made = person.types("versions", "create", "-m", "after two files").stdout
    assert made.startswith("v00")
    newest = person.reads("versions", "list")["versions"][0]
    folder = person.root / "models" / "backups" / "consolidated" / newest["name"]
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M;"
        "print(M.from_pretrained(sys.argv[1]).num_parameters())"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(loaded.stdout.split()[-1]) > 1000
    told = json.loads((person.root / "state" / "status" / "training_status.json").read_text())
    wanted = {
        "current_step", "global_step", "epoch", "loss", "val_loss", "learning_rate",
        "tokens_per_s", "eta_s", "current_file", "queue", "state", "heartbeat",
    }  # fmt: skip
    assert wanted <= set(told)


def test_a_killed_trainer_and_a_killed_daemon_lose_nothing(
    person: Person, chats: dict[str, bytes]
) -> None:
    starts_slowly(person)
    person.drops("a.jsonl", chats["conversations.jsonl"])
    person.drops("b.jsonl", chats["arithmetic.jsonl"])
    person.waits(lambda: (person.status()["training"]["global_step"] or 0) >= 3)
    first = person.trainer_pid()
    os.kill(first, signal.SIGKILL)
    started = time.monotonic()
    person.waits(lambda: person.status()["training"]["trainer_pid"] not in (None, first), 30)
    assert time.monotonic() - started < 30
    daemon = person.daemon_pid()
    os.kill(daemon, signal.SIGKILL)
    person.waits(lambda: person.types("status", check=False).returncode == 0, 60)
    assert person.daemon_pid() != daemon
    person.waits(
        lambda: len([j for j in person.jobs().values() if j["state"] == "completed"]) == 2, 120
    )
    assert sorted(person.jobs()) == ["a.jsonl", "b.jsonl"]


def test_pause_stop_and_resume_are_kept_over_a_restart(
    person: Person, chats: dict[str, bytes]
) -> None:
    starts_slowly(person)
    person.drops("a.jsonl", chats["conversations.jsonl"] + chats["arithmetic.jsonl"])
    person.waits(lambda: (person.status()["training"]["global_step"] or 0) >= 2)
    assert "PAUSED" in person.types("pause").stdout
    step = person.status()["training"]["global_step"]
    daemon = person.daemon_pid()
    os.kill(daemon, signal.SIGKILL)
    person.waits(lambda: person.types("status", check=False).returncode == 0)
    assert person.status()["training"]["intent"]["training"] == "pause"
    assert (person.status()["training"]["global_step"] or step) == step
    person.types("resume")
    person.waits(lambda: (person.status()["training"]["global_step"] or 0) > step)
    assert "STOPPED" in person.types("stop", "--now").stdout
    assert person.jobs()["a.jsonl"]["state"] == "processing"
    person.types("resume")
    person.waits(lambda: person.jobs()["a.jsonl"]["state"] == "completed", 120)


def test_rollback_goes_back_and_training_goes_on(person: Person, chats: dict[str, bytes]) -> None:
    starts(person)
    person.drops("a.jsonl", chats["first lessons.jsonl"])
    person.waits(lambda: person.jobs().get("a.jsonl", {}).get("state") == "completed", 120)
    person.types("versions", "create", "-m", "one")
    person.drops("b.jsonl", chats["arithmetic.jsonl"])
    person.waits(lambda: person.jobs().get("b.jsonl", {}).get("state") == "completed", 120)
    person.types("versions", "create", "-m", "two")
    before = person.status()["training"]["global_step"]
    assert person.types("versions", "rollback", check=False).returncode == 1  # nobody said yes
    person.types("versions", "rollback", "--yes")
    after = person.status()["training"]
    assert after["global_step"] == before + 1
    assert after["lineage"] == 1
    person.drops("c.jsonl", chats["conversations.jsonl"])
    person.waits(lambda: person.jobs().get("c.jsonl", {}).get("state") == "completed", 120)
    assert person.status()["training"]["global_step"] > before + 1


GOOD = (
    b'{"messages":[{"role":"user","content":"What is 1 + 1?"},'
    b'{"role":"assistant","content":"2"}]}\n'
)
BAD_FILES: dict[str, bytes] = {
    "not-json.jsonl": b"hello\nworld\n",
    "not-utf8.jsonl": b"\xff\xfe\x00\x01\n",
    "no-messages.jsonl": b'{"text": "hi"}\n',
    "wrong-role.jsonl": GOOD.replace(b'"user"', b'"wizard"'),
    "empty-content.jsonl": GOOD.replace(b'"2"', b'""'),
    "no-assistant.jsonl": b'{"messages":[{"role":"user","content":"hi"}]}\n',
    "empty.jsonl": b"",
}


def test_every_bad_file_gets_a_sentence_and_the_good_one_is_trained(person: Person) -> None:
    starts(person)
    for name, data in BAD_FILES.items():
        person.drops(name, data)
    (person.root / "inbox" / "folder.jsonl").mkdir()
    (person.root / "inbox" / "link.jsonl").symlink_to("/etc/hostname")
    rows = [GOOD.replace(b"1 + 1", f"1 + {n}".encode()) for n in range(200)]
    rows[7] = b"not a row\n"
    person.drops("good.jsonl", b"".join(rows))
    person.waits(lambda: set(person.jobs()) >= {*BAD_FILES, "good.jsonl"}, 90)
    jobs = person.jobs()
    for name in BAD_FILES:
        assert jobs[name]["state"] == "failed", (name, jobs[name])
        assert jobs[name]["error"]["message"] and jobs[name]["error"]["hint"], name
    person.waits(lambda: person.jobs()["good.jsonl"]["state"] == "completed", 90)
    assert person.jobs()["good.jsonl"]["rejected_rows"] == 1
    assert (person.root / "inbox" / "link.jsonl").is_symlink()
    told = person.types("events", "-n", "100").stdout
    assert "link.jsonl" in told and "folder.jsonl" in told


def test_validate_says_what_is_wrong_without_a_daemon(person: Person, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for name, data in BAD_FILES.items():
        file.write_bytes(data)
        done = person.types("validate", str(file), check=False)
        assert done.returncode == 1, (name, done.stdout, done.stderr)
    file.write_bytes(b"".join(GOOD.replace(b"1 + 1", f"1 + {n}".encode()) for n in range(50)))
    assert person.types("validate", str(file)).returncode == 0
    assert person.types("validate", str(tmp_path / "none.jsonl"), check=False).returncode == 2


def test_exit_codes_are_the_documented_ones(person: Person) -> None:
    assert person.types("status", check=False).returncode == 3
    assert person.types("no-such-verb", check=False).returncode == 2
    starts(person)
    assert person.types("status").returncode == 0
    refused = person.types("queue", "priority", "99", "high", check=False)
    assert refused.returncode == 1 and "99" in refused.stderr
    assert person.types("queue", "move", "1", check=False).returncode == 2
    second = person.types("--daemon", check=False)
    assert second.returncode == 3 and str(person.daemon_pid()) in second.stderr


def test_stop_daemon_saves_and_ends_it_and_the_next_one_trains_on(
    person: Person, chats: dict[str, bytes]
) -> None:
    starts_slowly(person)
    person.drops("a.jsonl", chats["conversations.jsonl"])
    person.waits(lambda: (person.status()["training"]["global_step"] or 0) >= 1)
    assert "ended" in person.types("stop", "--daemon").stdout
    assert person.types("status", check=False).returncode == 3
    starts(person)
    assert person.status()["training"]["intent"]["training"] == "run"
    person.waits(lambda: person.jobs()["a.jsonl"]["state"] == "completed", 120)


def test_a_stop_file_ends_the_daemon_once(person: Person, chats: dict[str, bytes]) -> None:
    starts_slowly(person)
    person.drops("a.jsonl", chats["conversations.jsonl"])
    person.waits(lambda: (person.status()["training"]["global_step"] or 0) >= 1)
    (person.root / ".stop").touch()
    person.waits(lambda: person.types("status", check=False).returncode == 3)
    assert not (person.root / ".stop").exists()
    starts(person)
    training = person.status()["training"]
    assert training["intent"]["training"] == "stopped"
    assert person.jobs()["a.jsonl"]["state"] == "processing"
    person.types("resume")
    person.waits(lambda: person.jobs()["a.jsonl"]["state"] == "completed", 120)


def test_keys_are_listed_by_the_name_that_rebinds_them(person: Person) -> None:
    listed = person.types("keys").stdout
    names = {line.split()[0]: line for line in listed.splitlines()}
    assert " p " in names["pause"]
    settings = person.root / "config.toml"
    mine = '[screen.keys]\npause = "ctrl+g"\nno_such = "x"'
    settings.write_text(settings.read_text().replace("[screen.keys]", mine))
    rebound = person.types("keys", check=False)
    assert rebound.returncode == 1 and "no_such" in rebound.stderr
    assert "ctrl+g" in next(line for line in rebound.stdout.splitlines() if line[:6] == "pause ")
