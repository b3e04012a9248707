"""What NVML and the driver's Xids say of a card: a pretended NVML, recorded lines of logs."""

from __future__ import annotations

import sys
from pathlib import Path

import fake_nvml
import pynvml
import pytest

from trainer_tui.safety import clock, gpu_health, meters
from trainer_tui.safety.crash import CrashClass, Evidence, classify
from trainer_tui.safety.gpu_health import Counters, Xid, from_kernel_log, from_lines
from trainer_tui.safety.meters import Meters

OFF_THE_BUS = (
    "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
)
MMU_FAULT = (
    "NVRM: Xid (PCI:0000:0b:00): 31, pid=12345, name=python3, Ch 00000008, intr 00000000."
    " MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7fdc_2a000000."
)
DOUBLE_BIT = (
    "NVRM: Xid (PCI:0000:3b:00): 48, pid='2345', name=python, An uncorrectable double bit error"
    " (DBE) has been detected on GPU in the framebuffer at partition 3, subpartition 0."
)
LOG = [
    "usb 1-1: new high-speed USB device number 2 using xhci_hcd",
    "NVRM: GPU at PCI:0000:65:00: GPU-0fe7f32d",
    OFF_THE_BUS,
    MMU_FAULT,
    DOUBLE_BIT,
]


def test_xids_are_read_from_lines_of_the_kernels_log() -> None:
    lost, fault, memory = from_lines(LOG)
    assert (lost.number, lost.pid, lost.of_the_card) == (79, None, True)
    assert "0000:65:00" in lost.text and "fallen off the bus" in lost.text
    assert (fault.number, fault.pid, fault.of_the_card, fault.of_a_program) == (
        31, 12345, False, True,
    )  # fmt: skip
    assert (memory.number, memory.pid, memory.of_the_card) == (48, 2345, True)


def kmsg(path: Path, *records: tuple[float, str]) -> Path:
    lines = [f"3,{n},{int(at_s * 1e6)},-;{text}\n" for n, (at_s, text) in enumerate(records)]
    path.write_text("".join(lines))
    return path


def test_only_what_was_logged_during_the_trainers_life_counts(tmp_path: Path) -> None:
    now_s = 700.0  # whatever this machine's own age is
    log = kmsg(tmp_path / "kmsg", (now_s - 500, DOUBLE_BIT), (now_s - 5, OFF_THE_BUS))
    assert [xid.number for xid in from_kernel_log(now_s - 60, log)] == [79]
    assert [xid.number for xid in from_kernel_log(now_s - 600, log)] == [48, 79]


def test_a_kernel_log_that_cannot_be_read_is_no_evidence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert from_kernel_log(0.0, tmp_path / "nothing") == []


def test_the_journal_is_read_where_the_device_may_not_be(tmp_path, monkeypatch) -> None:
    program = tmp_path / "journalctl"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "[   12.5] host kernel: {DOUBLE_BIT}"\n'
        f'echo "[99999999.5] host kernel: {OFF_THE_BUS}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = from_kernel_log(clock.monotonic_s(), tmp_path / "nothing")
    assert [xid.number for xid in found] == [79]


DIED = "CUDA error: unspecified launch failure"


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (Evidence(-9, xids=(Xid(79, "Xid 79"),)), CrashClass.GPU_HARDWARE),
        (Evidence(1, fault_text=DIED, xids=(Xid(48, "Xid 48"),)), CrashClass.GPU_HARDWARE),
        (Evidence(1, fault_text=DIED, xids=(Xid(31, "Xid 31"),)), CrashClass.CUDA_STICKY),
        (Evidence(-11, xids=(Xid(31, "Xid 31"),)), CrashClass.CUDA_STICKY),
        (Evidence(-11, gpu_problem="GPU 0: 2 memory errors"), CrashClass.GPU_HARDWARE),
        (Evidence(-9, ended_by_us="hang", xids=(Xid(119, "Xid 119"),)), CrashClass.GPU_HARDWARE),
        (Evidence(-9, ended_by_us="hang"), CrashClass.HANG),
        # What has nothing to do with a card stays what it is, whatever the card says.
        (Evidence(-9, oom_kills=1, gpu_problem="GPU is lost"), CrashClass.HOST_OOM),
        (Evidence(-9, ended_by_us="stop", xids=(Xid(79, ""),)), CrashClass.KILLED_BY_USER),
        (
            Evidence(1, reported={"error_class": "data_error"}, xids=(Xid(31, ""),)),
            CrashClass.DATA_ERROR,
        ),
        (Evidence(-9, xids=(Xid(999, "Xid 999"),)), CrashClass.UNKNOWN),
    ],
)
def test_the_drivers_word_decides_where_the_card_may_be_the_reason(evidence, expected) -> None:
    assert classify(evidence).crash_class is expected


def test_counters_that_rise_are_a_complaint_and_old_ones_are_not() -> None:
    old = Counters(ecc_uncorrected=3, pages_pending=True)
    assert gpu_health.worse(old, old) == ""
    assert "2 memory errors" in gpu_health.worse(old, Counters(5, True))
    assert "reset" in gpu_health.worse(Counters(0, False), Counters(0, True))
    well = Counters(remap_failed=False)
    assert "remapped" in gpu_health.worse(well, Counters(remap_failed=True))
    assert gpu_health.worse(None, Counters(ecc_uncorrected=7)) == "", "nobody saw what was before"


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Meters over the pretended NVML; returns them and what changes what it says."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml.json"))
    monkeypatch.setattr(gpu_health, "from_kernel_log", lambda since_s: [])
    fake_nvml._told.clear()
    return Meters(tmp_path), lambda **state: fake_nvml.say(tmp_path / "nvml.json", **state)


def test_meters_see_faults_xids_and_what_slows_a_card(cards) -> None:
    meter, say = cards
    [before] = meter.sample().gpus
    assert before.faults == Counters(0, False, False, "")
    started_s = clock.monotonic_s()
    say(xids=[79], ecc=2, reasons=0x40)
    [now] = meter.sample().gpus
    assert now.faults.slowed_by == "heat (hardware)"
    problem, xids = meter.gpu_evidence(started_s, (before,))
    assert problem == "GPU 0: 2 memory errors that ECC could not correct"
    assert [xid.number for xid in xids] == [79]
    assert meter.gpu_evidence(clock.monotonic_s(), (now,)) == ("", [])


@pytest.mark.parametrize("answer", ["NotSupported", "FunctionNotFound", "NoPermission", "Unknown"])
def test_a_figure_that_is_not_told_hides_no_card_and_is_no_fault(cards, answer) -> None:
    """An old driver, a container without rights, WSL2: the rest of the card is still known."""
    meter, say = cards
    [well] = meter.sample().gpus
    say(ecc_answer=answer, ecc=3)
    [silent] = meter.sample().gpus
    assert (silent.temperature_c, silent.faults) == (50, Counters(None, False, False, ""))
    assert meter.gpu_evidence(clock.monotonic_s(), (well,)) == ("", [])
    say(ecc=3)
    assert meter.gpu_evidence(clock.monotonic_s(), (silent,)) == ("", []), "3 may be old ones"


def test_what_was_not_told_before_is_no_complaint_when_it_comes() -> None:
    assert gpu_health.worse(Counters(), Counters(7, True, True)) == ""


def test_an_nvml_that_is_away_is_told_as_such(cards) -> None:
    meter, say = cards
    before = meter.sample().gpus
    say(ecc_answer="Uninitialized")
    assert meter.sample().gpus == ()
    say()
    assert meter.sample().gpus == before


def test_the_answers_that_end_a_look_are_names_of_the_real_nvml() -> None:
    assert [name for name in gpu_health._AWAY if not hasattr(pynvml, name)] == []


def test_a_lost_card_is_a_value_and_comes_back(cards) -> None:
    meter, say = cards
    before = meter.sample().gpus
    say(lost=True)
    machine = meter.sample()
    assert machine.gpus == () and machine.gpu_problem == "GPU is lost"
    assert meter.gpu_evidence(0.0, before)[0] == "GPU is lost"
    say()
    assert len(meter.sample().gpus) == 1


def test_a_machine_without_a_card_has_no_complaint(tmp_path: Path) -> None:
    if meters.Meters(tmp_path).sample().gpus:
        pytest.skip("this machine has a GPU")
    assert Meters(tmp_path).gpu_evidence(0.0, ()) == ("", [])


def test_the_pretended_nvml_has_only_names_of_the_real_one() -> None:
    names = [n for n in vars(fake_nvml) if n.startswith(("nvml", "NVML"))]
    assert names and [name for name in names if not hasattr(pynvml, name)] == []
    for name in names:
        if isinstance(value := getattr(fake_nvml, name), int):
            assert value == getattr(pynvml, name), name
