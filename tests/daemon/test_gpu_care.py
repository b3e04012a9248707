"""Beside a graphics card that is hot, crowded, broken or lost: a pretended NVML in a daemon."""

from __future__ import annotations

import json
import os
import signal

import fake_nvml
import pytest
from daemon_harness import plant, wait_for

GB = 1_000_000_000
LIMITS = "[gpu]\nmax_temperature_c = 90\nresume_temperature_c = 80\nforeign_memory_gb = 10.0\n"
QUICK = "from trainer_tui.daemon import rounds; rounds.TICK_S = rounds.METERS_EVERY_S = 0.2"


@pytest.fixture
def beside(serve, monkeypatch):
    """A daemon that trains on the pretended card, and what changes what the card says."""
    daemon = serve(settings=LIMITS, steps=100_000)
    file = daemon.workspace.root / "nvml.json"
    monkeypatch.setenv("FAKE_NVML", str(file))
    plant(daemon.workspace, "a.jsonl")
    daemon.prelude = f"{fake_nvml.PRELUDE}\n{QUICK}"
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3, 60)
    return daemon, lambda **state: fake_nvml.say(file, **state)


def holds(daemon, word):
    daemon.until_training("paused", 60)
    assert word in daemon.training()["reason"]
    return daemon.training()["global_step"]


def goes_on(daemon, step):
    wait_for(lambda: daemon.training()["global_step"] > step, 60, "training goes on")


def test_heat_and_crowds_pause_within_a_step_and_resume_only_well_below(beside):
    daemon, say = beside
    trainer = daemon.training()["trainer_pid"]
    say(temperature=91)
    step = holds(daemon, "91 °C")
    say(temperature=85)
    wait_for(lambda: daemon.status()["machine"]["gpus"][0]["temperature_c"] == 85, 30)
    assert holds(daemon, "85 °C") == step, "no step was done meanwhile"
    say(temperature=79)
    goes_on(daemon, step)
    say(foreign_bytes=11 * GB)
    step = holds(daemon, "others use 11.0 GB")
    say(foreign_bytes=9 * GB)
    wait_for(lambda: "9.0 GB" in (daemon.training()["reason"] or ""), 30)
    assert holds(daemon, "others use 9.0 GB") == step
    say()
    goes_on(daemon, step)
    assert daemon.training()["trainer_pid"] == trainer and daemon.training()["restarts"] == 0
    assert daemon.training()["intent"]["training"] == "run", "nobody's wish was touched"


def test_a_trainer_that_dies_with_its_card_is_an_incident_that_waits_for_a_person(beside):
    daemon, say = beside
    say(xids=[79], lost=True)
    os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
    training = daemon.until_training("degraded", 60)
    assert "fallen off the bus" in training["reason"]
    wait_for(lambda: daemon.status()["machine"]["gpu_problem"] == "GPU is lost")
    assert daemon.said("the GPU does not answer: GPU is lost")
    [incident] = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
    assert incident["class"] == "gpu_hardware" and "nvidia-smi" in incident["suggestion"]
    folder = daemon.workspace.incidents / incident["id"]
    kept = json.loads((folder / "incident.json").read_bytes())
    assert kept["gpu_problem"] == "GPU is lost" and kept["xids"]
    say()
    wait_for(lambda: daemon.said("the GPU is back"), 30)
    step = training["global_step"] or 0
    daemon.post("/v1/training/resume", timeout_s=60)
    goes_on(daemon, step)


def test_a_fault_of_the_programs_own_gets_a_new_process(beside):
    daemon, say = beside
    first, step = daemon.training()["trainer_pid"], daemon.training()["global_step"]
    say(xids=[31])
    os.kill(first, signal.SIGSEGV)
    wait_for(lambda: daemon.training()["trainer_pid"] not in (None, first), 60)
    [incident] = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
    assert incident["class"] == "cuda_sticky"
    goes_on(daemon, step)
