"""A trainer without a model, for tests of the daemon: it speaks the pipe's protocol, beats its
heartbeat and commits real (tiny) checkpoints with real manifests and ledgers.

Behaviour comes from `stub.json` in the workspace, read again before every step:
`steps` per file, `step_s`, `crash_at` {job id: step} (exit 1), `refuse` [job id], `save_every`,
`want_rollback` {job id: step} (set aside there or later, and a rollback asked for),
`waits_at` (a step of a file before which it says that it waits for memory),
`hang_at` (a global step that never ends), `stands_at` (one that does not while that stands here),
`fail_on_start` (an error class; `fail_starts`: so many times, then no more),
`dies_aside` (once it has let go of the model for a restore), `load_s` (how long it loads),
`save_s` (how long it makes somebody wait who asks for a commit).
A "row" is a line of the job's data.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import checkpoints, clock, durable, locks, manifest, messages
from trainer_tui.safety.heartbeat import HeartbeatWriter, Phase
from trainer_tui.safety.manifest import Cursor, FileEntry, LedgerEntry, Manifest
from trainer_tui.safety.pipe import PipeEnd
from trainer_tui.safety.workspace import Workspace

DEFAULTS: dict[str, Any] = {
    "steps": 4,
    "step_s": 0.01,
    "crash_at": {},
    "refuse": [],
    "want_rollback": {},
    "waits_at": -1,
    "save_every": 0,
    "crash_on_start": False,
    "hang_at": 0,
    "stands_at": 0,
    "fail_on_start": None,
    "fail_starts": 1 << 30,
    "dies_aside": False,
    "load_s": 0.0,
    "save_s": 0.0,
}


class Stub:
    def __init__(self, connection: Connection, spec: messages.TrainerSpec) -> None:
        self.workspace = Workspace(Path(spec.workspace))
        self.config = spec.config
        self.beat = HeartbeatWriter(Path(spec.heartbeat))
        self.inbox: queue.Queue[messages.ToTrainer | None] = queue.Queue()
        self.pipe = PipeEnd(
            connection,
            lambda frame: self.inbox.put(messages.decode_for_trainer(frame)),
            lambda: self.inbox.put(None),
            "stub",
        )
        self.sealed: Manifest | None = None
        self.step = 0
        self.saved_step = 0
        self.cursors: dict[int, Cursor] = {}
        self.finished: list[LedgerEntry] = []
        self.job: messages.Train | None = None
        self.at = 0
        self.paused = False
        self.stop_after_file = False
        self.want_said = False
        self.aside = False
        self.unheard: list[messages.ToTrainer] = []

    def options(self) -> dict[str, Any]:
        file = self.workspace.root / "stub.json"
        return DEFAULTS | (json.loads(file.read_text()) if file.exists() else {})

    def say(self, message: messages.FromTrainer) -> None:
        self.pipe.send(messages.encode(message))

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> int:
        self.pipe.start()
        self.lock = locks.acquire(self.workspace.writer_lock, wait=True)
        self.beat.beat(Phase.LOAD)
        options = self.options()
        if options["fail_on_start"] and self.fails(options["fail_starts"]):
            self.say(messages.Failed(options["fail_on_start"], "made to fail", "", "load", 0))
            self.pipe.flush(1)
            return 1
        if options["crash_on_start"]:
            return 1
        time.sleep(options["load_s"])
        self.load()
        while True:
            code = self.turn()
            if code is not None:
                self.pipe.flush(2)
                return code

    def fails(self, times: int) -> bool:
        file = self.workspace.root / "stub_failed"
        before = file.stat().st_size if file.exists() else 0
        with file.open("ab") as stream:
            stream.write(b".")
        return before < times

    def load(self) -> None:
        newest = checkpoints.newest_verified(self.workspace.current_model)
        for folder in checkpoints.list_folders(self.workspace.current_model):
            if newest is not None and folder != newest.folder:
                folder.rename(f"{folder}{checkpoints.BAD_SUFFIX}")
            else:
                break
        self.job, self.want_said, self.cursors, self.finished = None, False, {}, []
        if newest is not None:
            self.sealed = newest.manifest
            self.step = self.saved_step = newest.manifest.global_step
            self.cursors = {cursor.job_id: cursor for cursor in newest.manifest.cursors}
        name = newest.folder.name if newest else ""
        lineage = self.sealed.lineage if self.sealed else 0
        self.beat.beat(Phase.IDLE, global_step=self.step)
        self.say(messages.Ready(self.step, lineage, name, "cpu", "fp32", "sdpa", 1000, 0, "stub"))

    def turn(self) -> int | None:
        busy = self.job is not None and not self.paused and not self.aside
        if self.job is None and not self.want_said and not self.paused and not self.aside:
            self.want_said = True
            self.say(messages.WantJob())
        try:
            message = self.inbox.get(block=not busy)
        except queue.Empty:
            return self.train_step()
        return self.obey(message)

    def obey(self, message: messages.ToTrainer | None) -> int | None:
        if self.aside and not isinstance(message, messages.TakeUp | messages.Stop | None):
            self.unheard.append(message)
            return None
        match message:
            case None:
                self.commit("daemon_gone")
                return 0
            case messages.Train():
                return self.start_job(message)
            case messages.NothingWaits():
                self.commit("queue_dry")
            case messages.Pause(release=release):
                self.commit("pause")
                self.paused = True
                self.beat.beat(Phase.PAUSED)
                self.say(messages.Paused(self.step))
                if release:
                    self.say(messages.Stopping(self.step, "released"))
                    return 0
            case messages.Resume():
                self.paused = self.stop_after_file = False
                self.say(messages.Resumed(self.step))
            case messages.Stop(after_file=after_file):
                if after_file and self.job is not None:
                    self.stop_after_file = True
                    return None
                return self.stop()
            case messages.Skip(job_id=job_id):
                if self.job is not None and self.job.job_id == job_id:
                    fraction = self.at / self.options()["steps"]
                    self.job = None
                    self.want_said = False
                    self.commit("skip")
                    text = f"skipped at {fraction:.0%}"
                    self.say(messages.JobRefused(job_id, "skipped", text, "", fraction))
            case messages.SaveNow(evaluate_whole=whole):
                before = self.sealed
                self.beat.beat(Phase.PERSIST)
                time.sleep(self.options()["save_s"])
                if whole:
                    self.say(messages.Evaluated(self.step, "fixed", "set", 0.5, 8, 80, 0.01, True))
                self.commit("asked")
                if self.sealed is before:
                    name = f"checkpoint-{self.step}"
                    self.say(messages.Committed(self.step, name, 0, 0.0, "unchanged"))
            case messages.LetGo():
                self.commit("restore")
                self.lock.let_go()
                self.aside = True
                self.beat.beat(Phase.PAUSED)
                self.say(messages.HasLetGo(self.step))
                if self.options()["dies_aside"]:
                    self.pipe.flush(2)
                    os._exit(1)
            case messages.TakeUp():
                return self.take_up()
            case messages.Reconfigure(values=values):
                self.config = {**self.config, **values}
        return None

    def take_up(self) -> int | None:
        while not self.lock.take_again():
            time.sleep(0.01)
        self.aside = False
        folders = checkpoints.list_folders(self.workspace.current_model)
        loads = bool(folders) and folders[0].name != f"checkpoint-{self.step}"
        self.say(messages.TakenUp(self.step, loads))
        if loads:
            self.load()
        unheard, self.unheard = self.unheard, []
        codes = [self.obey(message) for message in unheard]
        return next((code for code in codes if code is not None), None)

    def stop(self) -> int:
        self.commit("stop")
        self.say(messages.Stopping(self.step, "asked"))
        return 0

    # --- training --------------------------------------------------------------------------------

    def start_job(self, job: messages.Train) -> int | None:
        if self.job is not None and self.job.job_id == job.job_id:
            self.say(messages.Said("error", "stub", f"#{job.job_id} was offered twice"))
        self.want_said = False
        if job.job_id in self.options()["refuse"]:
            text = "made to be refused"
            self.say(messages.JobRefused(job.job_id, "data_error", text, "mend it"))
            return None
        head = self.sealed.ledger if self.sealed else None
        if manifest.completed_jobs(self.workspace.ledger, head, {job.job_id}):
            self.say(messages.JobTrained(job.job_id, self.step))
            return None
        cursor = self.cursors.get(job.job_id)
        self.at = cursor.step_index if cursor else 0
        self.job = job
        steps = self.options()["steps"]
        self.say(messages.JobStarted(job.job_id, steps, self.at, steps, steps * 10, steps * 5))
        return None

    def train_step(self) -> int | None:
        assert self.job is not None
        options = self.options()
        if self.at >= options["steps"]:
            return self.end_job()
        if options["crash_at"].get(str(self.job.job_id)) == self.at:
            os._exit(1)
        if options["waits_at"] == self.at:
            self.say(messages.Said("warning", "waiting", "another process holds 9 GB of the card"))
        if self.at >= options["want_rollback"].get(str(self.job.job_id), 1 << 30):
            return self.ask_for_rollback(self.job.job_id)
        while options["hang_at"] and self.step + 1 >= options["hang_at"]:
            time.sleep(0.05)
        while options["stands_at"] and self.step + 1 >= options["stands_at"]:
            time.sleep(0.05)
            options = self.options()
        time.sleep(options["step_s"])
        self.step += 1
        self.at += 1
        steps = options["steps"]
        job_id = self.job.job_id
        self.cursors[job_id] = Cursor(job_id, self.job.file_sha256, "stub", 0, self.at, steps)
        self.beat.beat(Phase.MICRO_STEP, global_step=self.step)
        loss = 1 + 1 / self.step
        self.say(
            messages.StepDone(
                self.step,
                job_id,
                0,
                self.at,
                steps,
                loss,
                self.config["learning_rate"],
                0.5,
                10,
                5,
                1000.0,
                500.0,
                0.01,
            )
        )
        due = options["save_every"] and self.step - self.saved_step >= options["save_every"]
        if due and self.at < steps:  # the end of a file has a commit of its own
            self.commit("save_steps")
        return None

    def ask_for_rollback(self, job_id: int) -> None:
        self.job, self.want_said = None, False
        self.commit("skip")
        self.say(messages.JobRefused(job_id, "divergence", "made to diverge", "", 0.5))
        self.say(messages.WantRollback(job_id, "divergence", "made to diverge"))

    def end_job(self) -> int | None:
        assert self.job is not None
        job, self.job = self.job, None
        entry = LedgerEntry(
            job.job_id, job.name, job.file_sha256, self.at, 10 * self.at, 5 * self.at, self.at, 1,
            self.step, clock.now_iso(), 1.0, 1.5, 1.4,
        )  # fmt: skip
        self.finished.append(entry)
        self.cursors.pop(job.job_id, None)
        loss = 1 + 1 / self.step
        self.say(messages.Evaluated(self.step, "fixed", "set", loss, 8, 80, 0.01, True))
        self.say(messages.JobTrained(job.job_id, self.step))
        self.want_said = False
        return self.stop() if self.stop_after_file else None

    def commit(self, reason: str) -> None:
        if self.step == self.saved_step and not self.finished:
            return
        started_s = clock.monotonic_s()
        self.beat.beat(Phase.PERSIST)
        current = self.workspace.current_model
        head = self.sealed.ledger if self.sealed else None
        if self.finished:
            head = manifest.write_segment(self.workspace.ledger, head, self.finished)
        final = current / f"checkpoint-{self.step}"
        staging = durable.staging_name(final)
        staging.mkdir()
        weights = tiny_safetensors(self.step)
        durable.write_new(staging / "model.safetensors", weights, 0o400)
        entry: FileEntry = checkpoints.entry_for(staging, "model.safetensors", "weights")
        old = self.sealed
        sealed = Manifest(
            created_at=clock.now_iso(), global_step=self.step,
            lineage=old.lineage if old else 0, parent="", reason=reason, tokens=10 * self.step,
            supervised_tokens=5 * self.step, cursors=list(self.cursors.values()), lr_factor=1.0,
            schedule_origin=0, warmup_origin=0, config_hash="stub", template_hash="t",
            tokenizer_hash="k", base_model="stub", weights_only=False, ledger=head, files=[entry],
            validation={"fixed": 1 + 1 / max(1, self.step)},
        )  # fmt: skip
        checkpoints.commit(staging, final, manifest.seal(sealed))
        self.sealed, self.saved_step, self.finished = manifest.read(final), self.step, []
        seconds = clock.monotonic_s() - started_s
        self.say(messages.Committed(self.step, final.name, len(weights), seconds, reason))
        self.beat.beat(Phase.IDLE)


def tiny_safetensors(value: int) -> bytes:
    """A valid safetensors file with one int64 tensor."""
    entry = {"w": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    header = json.dumps(entry).encode()
    return len(header).to_bytes(8, "little") + header + value.to_bytes(8, "little")


def run(connection: Connection, spec: bytes) -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    stub = Stub(connection, msgspec.msgpack.decode(spec, type=messages.TrainerSpec))
    signal.signal(signal.SIGTERM, lambda *_: stub.inbox.put(messages.Stop()))
    return stub.run()
