"""The reason of a crash comes from the best evidence, and "killed" alone is not out of memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trainer_tui.safety import crash
from trainer_tui.safety.crash import (
    Action,
    CrashClass,
    Evidence,
    classify,
    oom_kill_count,
    read_report,
)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (Evidence(-9), CrashClass.UNKNOWN),
        (Evidence(-9, oom_kills=1), CrashClass.HOST_OOM),
        (Evidence(-9, ended_by_us="hang", oom_kills=1), CrashClass.HANG),
        (Evidence(-9, ended_by_us="stop"), CrashClass.KILLED_BY_USER),
        (Evidence(-15), CrashClass.KILLED_BY_USER),
        (Evidence(-signal.SIGSEGV), CrashClass.CODE_BUG),
        (Evidence(1), CrashClass.UNKNOWN),
        (Evidence(None), CrashClass.UNKNOWN),
        (
            Evidence(1, fault_text="torch.OutOfMemoryError: CUDA out of memory."),
            CrashClass.CUDA_OOM,
        ),
        (
            Evidence(1, fault_text="CUDA error: device-side assert triggered"),
            CrashClass.CUDA_STICKY,
        ),
        (
            Evidence(1, fault_text="CUDA error: an illegal memory access was encountered"),
            CrashClass.CUDA_STICKY,
        ),
        (
            Evidence(1, fault_text="CUDA error: uncorrectable ECC error encountered"),
            CrashClass.GPU_HARDWARE,
        ),
        (Evidence(1, gpu_problem="GPU is lost"), CrashClass.GPU_HARDWARE),
        (
            Evidence(1, fault_text="OSError: [Errno 28] No space left on device"),
            CrashClass.DISK_FULL,
        ),
        (Evidence(1, fault_text="OSError: [Errno 30] Read-only file system"), CrashClass.READ_ONLY),
        (Evidence(1, fault_text="OSError: [Errno 5] Input/output error"), CrashClass.IO_ERROR),
        (Evidence(-9, disk_free_bytes=1000), CrashClass.DISK_FULL),
        (Evidence(1, reported={"error_class": "nan", "message": "loss"}), CrashClass.NAN),
        (
            Evidence(1, reported={"error_class": "data_error", "message": "x"}),
            CrashClass.DATA_ERROR,
        ),
        (
            Evidence(1, reported={"error_class": "code_bug", "message": "No space left on device"}),
            CrashClass.DISK_FULL,
        ),
        (Evidence(1, reported={"message": "KeyError: 3"}), CrashClass.CODE_BUG),
        (Evidence(1, reported={"error_class": "never heard of"}), CrashClass.CODE_BUG),
        (Evidence(1, reported={"error_class": "plan_changed", "message": "x"}), CrashClass.CONFIG),
    ],
)
def test_the_class_follows_the_ladder(evidence: Evidence, expected: CrashClass) -> None:
    assert classify(evidence).crash_class is expected


def test_every_class_has_an_action_and_a_sentence() -> None:
    for crash_class in CrashClass:
        finding = classify(Evidence(1, reported={"error_class": str(crash_class), "message": "m"}))
        assert finding.suggestion and isinstance(finding.action, Action)


def test_only_data_errors_are_permanent() -> None:
    data = Evidence(1, reported={"error_class": "data_error", "message": "row 3"})
    assert classify(data).permanent
    assert not classify(Evidence(-9, oom_kills=1)).permanent


def test_the_oom_counter_is_read_from_the_cgroup(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\n")
    assert oom_kill_count(events) == 2
    assert oom_kill_count(tmp_path / "missing") >= 0


def test_a_half_written_report_is_no_report(tmp_path: Path) -> None:
    report = tmp_path / "error.json"
    assert read_report(report) is None
    report.write_text('{"error_class": "na')
    assert read_report(report) is None
    report.write_text('{"error_class": "nan"}')
    assert read_report(report) == {"error_class": "nan"}


def test_ordinary_chatter_about_the_links_is_no_broken_hardware() -> None:
    chatter = "NCCL INFO Channel 00/02 : 0[0] -> 1[1] via P2P/NVLink\nNCCL INFO Connected\n"
    assert classify(Evidence(exit_code=1, fault_text=chatter)).crash_class == CrashClass.UNKNOWN
    broken = "CUDA error: uncorrectable NVLink error detected during the execution"
    found = classify(Evidence(exit_code=1, fault_text=broken))
    assert found.crash_class == CrashClass.GPU_HARDWARE


def test_memory_missing_at_the_start_of_a_context_is_out_of_memory() -> None:
    found = classify(Evidence(exit_code=1, fault_text="RuntimeError: CUDA error: out of memory"))
    assert found.crash_class == CrashClass.CUDA_OOM


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    found = classify(Evidence(exit_code=-40))
    assert found.crash_class == CrashClass.UNKNOWN and "signal 40" in found.text


def test_every_reason_for_refusing_a_file_has_a_class_and_advice() -> None:
    for name in ("plan_changed", "overfitting", "forgetting", "divergence", "data_error"):
        assert crash.named_class(name) is not None and crash.advice(name)
    assert crash.named_class("plan_changed") is CrashClass.CONFIG
    assert crash.named_class("skipped") is None and crash.advice("skipped") == ""
