"""Each class of the crash detector: what follows by itself, and what is said to a person."""

from __future__ import annotations

import json

import pytest
from daemon_harness import chat_rows, plant, set_stub

from trainer_tui.daemon import memory_wait
from trainer_tui.daemon.after_end import End, Record, judge
from trainer_tui.safety.crash import Action, CrashClass, Evidence, classify
from trainer_tui.safety.gpu_health import Xid

BACKOFF_S = (1.0, 5.0, 30.0)
FAST = "[supervision]\nattempts = 1\nbackoff_s = [0.05]\n"


def said(name: str) -> Evidence:
    return Evidence(1, reported={"error_class": name, "message": "as reported"})


# Class -> evidence, action, what follows with a file in hand at its first attempt, and words of
# the suggestion. "park": the file is set aside at once; "wait": the longest back-off.
TABLE = [
    ("cuda_oom", said("cuda_oom"), Action.SMALLER_MICRO_BATCH, "restart", "half the micro-batch"),
    ("host_oom", Evidence(-9, oom_kills=1), Action.WAIT_FOR_MEMORY, "wait", "free memory"),
    ("cuda_sticky", Evidence(-11, xids=(Xid(31, "x"),)), Action.NEW_PROCESS, "restart", "context"),
    ("gpu_hardware", Evidence(-9, xids=(Xid(79, "x"),)), Action.PAUSE, "degrade", "nvidia-smi"),
    ("disk_full", Evidence(-9, disk_free_bytes=9), Action.PAUSE, "restart", "resumes by itself"),
    ("io_error", said("io_error"), Action.PAUSE, "degrade", "dmesg"),
    ("read_only", said("read_only"), Action.PAUSE, "degrade", "remount"),
    ("nan", said("nan"), Action.PREVIOUS_CHECKPOINT, "restart", "learning_rate"),
    ("data_error", said("data_error"), Action.PARK_FILE, "park", "validate FILE"),
    ("checkpoint_corrupt", said("checkpoint_corrupt"), Action.PREVIOUS_CHECKPOINT, "degrade",
     "versions restore"),
    ("config", said("config"), Action.PAUSE, "degrade", "config.toml"),
    ("code_bug", Evidence(-11), Action.NEW_PROCESS, "restart", "report it"),
    ("hang", Evidence(-9, ended_by_us="hang"), Action.NEW_PROCESS, "restart", "stack dumps"),
    ("killed_by_user", Evidence(-15), Action.NEW_PROCESS, "restart", "by a signal"),
    ("unknown", Evidence(-9), Action.NEW_PROCESS, "restart", "logs trainer"),
]  # fmt: skip


def test_the_table_below_has_every_class() -> None:
    assert {name for name, *_ in TABLE} == {str(known) for known in CrashClass}


@pytest.mark.parametrize(("name", "evidence", "action", "follows", "words"), TABLE)
def test_every_class_has_its_action_and_its_advice(name, evidence, action, follows, words):
    finding = classify(evidence)
    assert (str(finding.crash_class), finding.action) == (name, action)
    assert words in finding.suggestion and "\n" not in finding.suggestion
    end = End(1, False, False, True, in_hand=7, attempts=1)
    verdict, _ = judge(end, finding, Record(), 3, BACKOFF_S)
    assert verdict.park == (follows == "park")
    assert verdict.then == ("degrade" if follows == "degrade" else "restart")
    assert verdict.wait_s == (BACKOFF_S[-1] if follows == "wait" else 0.0 if verdict.park else 1.0)


@pytest.mark.parametrize("name", [name for name, _, _, follows, _ in TABLE if follows != "park"])
def test_two_files_parked_in_a_row_for_any_class_end_the_restarting(name):
    finding = classify(next(evidence for known, evidence, *_ in TABLE if known == name))
    spent = End(1, False, False, True, in_hand=7, attempts=3)
    first, record = judge(spent, finding, Record(), 3, BACKOFF_S)
    second, _ = judge(spent, finding, record, 3, BACKOFF_S)
    assert first.park and second.park and second.then == "degrade"


def test_after_two_parked_files_intake_stops_and_the_api_stays(serve):
    daemon = serve(settings=FAST, steps=5, crash_at={"1": 2, "2": 2})
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "b.jsonl")
    plant(daemon.workspace, "c.jsonl")
    daemon.start()
    training = daemon.until_training("degraded", 60)
    assert "no counter says why" in training["reason"] or "left no word" in training["reason"]
    assert [daemon.job(f"{name}.jsonl")["state"] for name in "abc"] == [
        "failed", "failed", "waiting",
    ]  # fmt: skip
    late = daemon.workspace.inbox / "late.jsonl"
    late.write_bytes(chat_rows(3, "late"))
    refused = daemon.call("POST", "/v1/jobs", {"path": str(late)})
    assert refused.status == 409 and "given up" in refused.json["detail"]
    assert late.exists() and daemon.job("late.jsonl") is None
    assert daemon.get("/v1/incidents")["incidents"] and daemon.get("/v1/versions")
    set_stub(daemon.workspace)
    daemon.post("/v1/training/resume", timeout_s=60)
    daemon.until_job("late.jsonl", "completed", 60)


def test_out_of_gpu_memory_lets_the_next_trainer_begin_smaller(serve):
    settings = "[supervision]\nbackoff_s = [0.05]\n"
    daemon = serve(settings=settings, fail_on_start="cuda_oom", fail_starts=1)
    daemon.workspace.prepare()
    hint = daemon.workspace.cache / "micro_batch.json"
    hint.write_text(json.dumps({"H100|1|master": 8192, "old|1|fp32": 300}))
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed", 60)
    smaller = {"H100|1|master": 4096, "old|1|fp32": memory_wait.SMALLEST_MICRO_BATCH}
    assert json.loads(hint.read_bytes()) == smaller
    assert daemon.said("begins with a micro-batch of")


def test_no_hint_and_a_damaged_one_are_left_alone(tmp_path):
    assert memory_wait.halve_micro_batches(tmp_path) == {}
    (tmp_path / "micro_batch.json").write_text("{")
    assert memory_wait.halve_micro_batches(tmp_path) == {}
